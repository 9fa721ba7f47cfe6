/** The modules of std that the service and its suite import: who can load this file has std. */
import "@std/assert";
import "@std/http/negotiation";
import "@std/http/status";
