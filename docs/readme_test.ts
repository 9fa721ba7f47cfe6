/** The proof of the README's tables and examples: they say what the code says. */
import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import {
  DEFAULTS,
  formatRequest,
  HARDENED,
  IMAGE_MEMORY,
  INFORMATION_KEYS,
  launch,
  readText,
  type RequestParts,
  sendRaw,
  SOURCE,
  start,
  test,
} from "../.ci/harness.ts";
import { parseConfig } from "../main.ts";
import project from "../deno.json" with { type: "json" };

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
  for (const [name = "", fallback = "", meaning = ""] of rows) {
    const [variable = ""] = findCode(name);
    assertEquals(
      findCode(fallback)[0],
      String(DEFAULTS[variable as keyof typeof DEFAULTS]),
      variable,
    );
    const allowed = readAllowed(variable);
    const [, most] = /^a whole number from 0 to (\d+)$/.exec(allowed) ?? [];
    if (most === undefined) {
      const words = findCode(meaning);
      for (const word of allowed.split(", ")) {
        assert(words.includes(word), `${variable}: ${word}`);
        assertEquals(String(parse(variable, word)), word);
      }
    } else {
      assertMatch(meaning, new RegExp(`\\b0–${most}\\b`), variable);
      for (const limit of [0, Number(most)]) {
        assertEquals(parse(variable, String(limit)), limit, variable);
      }
      assertThrows(() => parse(variable, String(Number(most) + 1)), RangeError);
    }
  }
});

test("--help has every variable, option and exit code of the README", async () => {
  await using run = await launch(SOURCE, {}, ["--help"]);
  assertEquals(await run.waitForCode(), 0);
  const help = run.stdout;
  for (const [name, fallback] of Object.entries(DEFAULTS)) {
    const entry = help.slice(help.search(new RegExp(`^ +${name} `, "m"))).split("\n").slice(0, 2)
      .join(" ");
    assertStringIncludes(entry, `(default ${fallback})`, name);
    assertStringIncludes(entry, readAllowed(name), name);
  }
  const configuration = findSection("Configuration");
  const commandLine = configuration.slice(configuration.indexOf("`--health` probes"));
  assertEquals(findCode(commandLine), ["--health", "--help"]);
  for (const option of ["--health", "--version", "--help"]) {
    assertStringIncludes(help, `  ${option} `);
  }
  const codes = (text: string) =>
    (text.match(/\b\d+\b/g) ?? []).map(Number).toSorted((a, b) => a - b);
  const rows = help.slice(help.indexOf("Exit codes:")).split("\n").map((line) => line.slice(0, 18));
  assertEquals(codes(rows.join("\n")), [0, 1, 2, 130, 143]);
  assertEquals(codes(commandLine.slice(commandLine.indexOf("Exit codes:"))), [0, 1, 2, 130, 143]);
});

test("the table of the API has the statuses that the service answers with", async () => {
  await using service = await start(SOURCE);
  const [parts, malformed, none] = [{}, { host: "Host: a b\r\n" }, {
    version: "HTTP/1.0",
    host: "",
  }];
  const requests: Record<string, [string, RequestParts][]> = {
    "`OPTIONS`": [["/", { method: "OPTIONS" }]],
    "other methods": [["/", { method: "PUT" }]],
    "other paths": [["/health/", parts]],
    "malformed `Host`": [["/", malformed], ["/", none]],
  };
  const rows = findSection("API").split("\n").map((row) =>
    row.split("|").slice(1, -1).map((cell) => cell.trim())
  );
  for (const [name, asked] of Object.entries(requests)) {
    const [, answer = ""] = rows.find(([request]) => request === name)!;
    const statuses = [];
    for (const [path, parts] of asked) {
      statuses.push(String((await sendRaw(service.port, formatRequest(path, parts))).status));
    }
    assertEquals(answer.match(/\b[1-5]\d\d\b/g), statuses, name);
  }
});

test("the examples of the API have the keys of the answers", () => {
  const [health, system, request] = Array.from(
    findSection("API").matchAll(/^\{.*\}$/gm),
    ([line]) => JSON.parse(line),
  );
  assertEquals(Object.keys(health), ["status", "timestamp", "uptime_seconds"]);
  assertEquals(Object.keys(system), INFORMATION_KEYS.system);
  assertEquals(Object.keys(request), INFORMATION_KEYS.request);
});

test("every task that the README names is there", () => {
  const named = Array.from(README.matchAll(/\btask ([a-z]+)\b/g), ([, name]) => name!);
  for (const name of ["dev", "test", "ok", "compile"]) {
    assert(named.includes(name), `${name} is not named`);
  }
  for (const name of named) assert(name in project.tasks, `task ${name}`);
});

test("the README hardens a container as the tests do", () => {
  assertStringIncludes(README, [...HARDENED, "-m", IMAGE_MEMORY].join(" "));
});
