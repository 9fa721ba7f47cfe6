/** The proof that what the documents name is there. */
import { assertArrayIncludes, assertStringIncludes } from "@std/assert";
import project from "../deno.json" with { type: "json" };
import { SOURCE } from "../.test/forms.ts";
import { pathOf, readOutput, readText } from "../.test/programs.ts";
import { spec } from "../.test/run.ts";

const findAll = (text: string, pattern: RegExp) =>
  Array.from(text.matchAll(pattern), ([all, group]) => group ?? all);
const VERSION = findAll(readText("Dockerfile"), /^ARG DENO_VERSION=(.*)$/gm);

Deno.test(spec("README's defaults of variables are those of --help", async () => {
  const help = await readOutput([...await SOURCE.command({}, "", {}), "--help"]);
  const plain = help.replaceAll(/\s+/g, " ");
  for (const row of findAll(readText("README.md"), /^\| (`[A-Z_]+` +\| `\w.*`) +\|/gm)) {
    const [name = "", fallback] = findAll(row, /`(\S+)`/g);
    const entry = plain.slice(plain.indexOf(` ${name} `));
    assertStringIncludes(entry.slice(0, entry.indexOf(")") + 1), `(default ${fallback})`, name);
  }
}));

function* findDocuments(folder = ""): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(pathOf(folder))) {
    if (isDirectory && !/^(\.git|dist|coverage|node_modules)$/.test(name)) {
      yield* findDocuments(`${folder}${name}/`);
    } else if (name.endsWith(".md")) yield folder + name;
  }
}

for (const file of findDocuments()) {
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
