/** The proof of the README's tables and examples, and of what all documents name. */
import { assertArrayIncludes, assertEquals } from "@std/assert";
import project from "../deno.json" with { type: "json" };
import { SOURCE } from "../.test/forms.ts";
import { pathOf, readOutput, readText } from "../.test/programs.ts";
import { formatRequest, sendRaw } from "../.test/requests.ts";
import { DEFAULTS, share, spec } from "../.test/run.ts";

const findAll = (text: string, pattern: RegExp) =>
  Array.from(text.matchAll(pattern), ([all, group]) => group ?? all);
const README = readText("README.md");
const VERSION = findAll(readText("Dockerfile"), /^ARG DENO_VERSION=(.*)$/gm);
const findRow = (cell: string) => findAll(README, new RegExp(`^\\| ${cell} +\\|.*`, "gm"))[0] ?? "";

Deno.test(spec("the table of variables says what --help says", async () => {
  const help = await readOutput([...await SOURCE.command({}, "", {}), "--help"]);
  for (const name of Object.keys(DEFAULTS)) {
    const entry = help.slice(help.indexOf(`  ${name} `));
    const [, allowed = "", fallback] = /\n +(.*) \(default (.*)\)/.exec(entry)!;
    const [, shown, ...words] = findAll(findRow(`\`${name}\``), /[^\s`|,;]+/g);
    assertEquals(shown, fallback, name);
    assertArrayIncludes(words, allowed.replace("a whole number from 0 to ", "0–").split(", "));
  }
}));

const REQUESTS = {
  "`OPTIONS`": formatRequest("/", { method: "OPTIONS" }),
  "other methods": formatRequest("/", { method: "PUT" }),
  "other paths": formatRequest("/health/"),
  "malformed `Host`": formatRequest("/", { host: "Host: a b\r\n" }),
};

Deno.test(spec("the table of answers has their statuses, and examples their keys", async () => {
  const { port, url } = await share(SOURCE);
  for (const [cell, request] of Object.entries(REQUESTS)) {
    const { status } = await sendRaw(port, request);
    assertEquals(findAll(findRow(cell), /\b\d{3}\b/g)[0], String(status), cell);
  }
  const read = async (path: string) => await (await fetch(url + path)).json();
  const [health, { system, request }] = [await read("/health"), await read("/")];
  const examples = findAll(README, /^\{.*\}$/gm).map((line) => JSON.parse(line));
  assertEquals(examples.map(Object.keys), [health, system, request].map(Object.keys));
}));

const FILES = ["", "docs/", "docs/deploy/"]
  .flatMap((folder) => [...Deno.readDirSync(pathOf(folder))].map(({ name }) => folder + name));

for (const file of FILES.filter((file) => file.endsWith(".md"))) {
  Deno.test(`${file} names tasks, headings and a version of Deno that exist`, () => {
    const text = readText(file);
    assertArrayIncludes(Object.keys(project.tasks), findAll(text, /deno(?:@\S+)? task ([a-z]+)/g));
    assertArrayIncludes(VERSION, findAll(text, /deno@(\d[\d.]+)/g));
    for (const link of findAll(text, /\]\((?!https:)(.*?)\)/g)) {
      const { pathname, hash } = new URL(link, `file:///${file}`);
      const target = Deno.statSync(pathOf(pathname)).isFile ? readText(pathname) : "";
      const headings = findAll(target.toLowerCase().replace(/[^#\w\s-]/g, ""), /^#+ (.*)$/gm);
      assertArrayIncludes(["", ...headings.map((text) => `#${text.replaceAll(" ", "-")}`)], [hash]);
    }
  });
}
