/** Checks HTML by the Nu checker, which needs Java, and prints as JSON what it finds. */
// deno-lint-ignore no-import-prefix -- a tool of the tests, not of the project
import jar from "npm:vnu-jar@26.9.27";

const findings: string[] = [];
for (const html of await new Response(Deno.stdin.readable).json()) {
  const file = await Deno.makeTempFile({ suffix: ".html" });
  try {
    await Deno.writeTextFile(file, html);
    const args = ["-jar", String(jar), "--format", "json", file];
    const { stderr } = await new Deno.Command("java", { args }).output();
    const { messages } = JSON.parse(new TextDecoder().decode(stderr));
    for (const { lastLine, message } of messages) findings.push(`line ${lastLine}: ${message}`);
  } finally {
    await Deno.remove(file);
  }
}
console.log(JSON.stringify(findings));
