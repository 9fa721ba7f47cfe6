/** The proof of the README's tables and examples: they say what the code says. */
import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { DEFAULTS, HARDENED, INFORMATION_KEYS, launch, readText, SOURCE, test } from "../.ci/harness.ts";
import { parseConfig } from "../main.ts";
import project from "../deno.json" with { type: "json" };
import openapi from "./openapi.json" with { type: "json" };

const README = readText("README.md");

/** The text of a section of the README. */
function findSection(title: string): string {
  return README.split(/^## /m).find((section) => section.startsWith(`${title}\n`))!;
}

/** The rows of a section's tables, as cells. */
function readRows(section: string): string[][] {
  const rows = section.split("\n").filter((line) => line.startsWith("| `"));
  return rows.map((row) => row.split("|").slice(1, -1).map((cell) => cell.trim()));
}

function findCode(text: string): string[] {
  return Array.from(text.matchAll(/`([^`]*)`/g), ([, code]) => code!);
}

function parse(name: string, value: string) {
  return parseConfig(
    { get: (asked) => asked === name ? value : undefined },
    false,
  )[name as keyof typeof DEFAULTS];
}

/** What the service says is allowed when it is given something else. */
function readAllowed(name: string): string {
  const { message } = assertThrows(() => parse(name, "?"), RangeError);
  return message.slice(message.indexOf("allowed is ") + "allowed is ".length);
}

test("the table of variables has their defaults and what is allowed", () => {
  const rows = readRows(findSection("Configuration"));
  assertEquals(rows.map(([name]) => findCode(name!)[0]), Object.keys(DEFAULTS));
  for (const [name = "", fallback = "", allowed = ""] of rows) {
    const [variable = ""] = findCode(name);
    assertEquals(findCode(fallback)[0], String(DEFAULTS[variable as keyof typeof DEFAULTS]), variable);
    const words = findCode(allowed);
    if (words.length > 0) {
      assertEquals(words.join(", "), readAllowed(variable), variable);
      for (const word of words) assertEquals(String(parse(variable, word)), word);
    } else {
      const [least, most] = allowed.match(/\d+/g)!.map(Number) as [number, number];
      for (const limit of [least, most]) assertEquals(parse(variable, String(limit)), limit, variable);
      for (const beyond of [least - 1, most + 1]) {
        assertThrows(() => parse(variable, String(beyond)), RangeError);
      }
    }
  }
});

test("--help has every variable, option and exit code of the README", async () => {
  await using run = await launch(SOURCE, {}, ["--help"]);
  assertEquals(await run.waitForCode(), 0);
  const help = run.stdout;
  for (const [name, fallback] of Object.entries(DEFAULTS)) {
    const entry = help.slice(help.search(new RegExp(`^ +${name} `, "m"))).split("\n").slice(0, 2).join(" ");
    assertStringIncludes(entry, `(default ${fallback})`, name);
    assertStringIncludes(entry, readAllowed(name), name);
  }
  const configuration = findSection("Configuration");
  const commandLine = configuration.slice(configuration.indexOf("Command line:"));
  const options = findCode(commandLine);
  assertEquals(options, ["--health", "--version", "--help"]);
  for (const option of options) assertStringIncludes(help, `  ${option} `);
  const codes = (text: string) => (text.match(/\b\d+\b/g) ?? []).map(Number).toSorted((a, b) => a - b);
  const helpCodes = help.slice(help.indexOf("Exit codes:")).split("\n").map((line) => line.slice(0, 18)).join(
    "\n",
  );
  assertEquals(codes(helpCodes), [0, 1, 2, 130, 143]);
  assertEquals(codes(commandLine.slice(commandLine.indexOf("Exit codes:"))), codes(helpCodes));
});

test("the example of GET / is that of the API's description, with the keys and the version of today", () => {
  const [, text = ""] = /^\$ curl -s localhost:5000\/ \| jq\n(\{.*?^\})$/ms.exec(README)!;
  const { endpoints, ...example } = JSON.parse(text);
  assertEquals({ ...example, endpoints }, openapi.components.examples.Information.value);
  const keys = Object.entries(example).map(([key, part]) => [key, Object.keys(part as object)]);
  assertEquals(keys, Object.entries(INFORMATION_KEYS));
  assertEquals(example.service.version, project.version);
});

test("the table of tasks has those that people call", () => {
  const named = readRows(findSection("Development")).map(([name]) => findCode(name!)[0]);
  const tasks = Object.keys(project.tasks).filter((task) => !["flags", "std"].includes(task));
  assertEquals(named.toSorted(), tasks.map((task) => `deno task ${task}`).toSorted());
});

test("the hardened docker run of the README is how the image is tested", () => {
  const command = /^docker run .*? --read-only .*?[^\\]$/ms.exec(findSection("Docker"))![0].replace(
    /\\\n */g,
    "",
  );
  assertStringIncludes(command, HARDENED.join(" "));
});
