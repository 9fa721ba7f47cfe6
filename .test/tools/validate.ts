/**
 * Validates values by schemas of an OpenAPI description, and prints what is wrong with each. All is
 * JSON, and comes on standard input.
 */
// deno-lint-ignore-file no-import-prefix -- a tool of the tests, not of the project
import { Ajv2020 } from "npm:ajv@8.20.0/dist/2020.js";
import formats from "npm:ajv-formats@3.0.1";

interface Input {
  readonly description: object;
  readonly values: { readonly schema: object; readonly value: unknown; readonly about: string }[];
}

const { description, values }: Input = await new Response(Deno.stdin.readable).json();
const ajv = new Ajv2020({ strict: false, allErrors: true });
formats.default(ajv);
ajv.addSchema({ $id: "http://description/", ...description });
const problems = values.flatMap(({ schema, value, about }) => {
  // a reference of the description is relative to it
  const text = JSON.stringify(schema).replaceAll('"#/', '"http://description/#/');
  return ajv.validate(JSON.parse(text), value) ? [] : [`${about}: ${ajv.errorsText()}`];
});
console.log(JSON.stringify(problems));
