/** The modules of std that the service imports: who can load this file can start the service. */
import "@std/http/negotiation";
import "@std/http/status";
