/**
 * Validates Kubernetes manifests: `deno run --no-lock --no-config -A .ci/kubernetes.ts FILE`. The package has
 * the schemas of a release; its validators let unknown fields pass, its types do not, so both are asked.
 */
// deno-lint-ignore no-import-prefix -- a tool of CI, not of the project
import { parseAllDocuments } from "npm:yaml@2.9.1";
const file = Deno.args[0]!;
// deno-lint-ignore no-explicit-any
const objects = parseAllDocuments(Deno.readTextFileSync(file)).map((d) => d.toJS() as any);
const lines = objects.flatMap((object, n) => {
  const path = `npm:kubernetes-models@5.1.0/${object.apiVersion}/${object.kind}`;
  return [
    `import { type I${object.kind} as I${n}, ${object.kind} as C${n} } from "${path}";`,
    `const o${n}: I${n} = ${JSON.stringify(object, null, 1)};`,
    `new C${n}(o${n}).validate();`,
    `console.log("valid:", o${n}.apiVersion, o${n}.kind);`,
  ];
});
const { code } = await new Deno.Command(Deno.execPath(), {
  args: ["eval", "--no-config", "--no-lock", "--check", "--ext=ts", lines.join("\n")],
}).spawn().status;
Deno.exit(code);
