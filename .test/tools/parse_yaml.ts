/** Prints the documents of a YAML text, a JSON string on standard input, as JSON. */
// deno-lint-ignore no-import-prefix -- a tool of the tests, not of the project
import { parseAllDocuments } from "npm:yaml@2.9.1";

const text: string = await new Response(Deno.stdin.readable).json();
const documents = parseAllDocuments(text);
for (const { errors } of documents) if (errors[0]) throw errors[0];
console.log(JSON.stringify(documents.map((document) => document.toJS())));
