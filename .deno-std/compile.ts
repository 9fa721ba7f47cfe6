/**
 * Compiles the service into `dist/devops-info-service`: the same bytes from any clone, in any
 * folder, at any time. Arguments go to `deno compile`, `--target` for one.
 *
 * `deno compile` embeds the modification time of each local file (denoland/deno#31746), those in
 * npm's cache too, and takes in a `package.json` of a parent folder. So it gets copies with a fixed
 * time in a folder of their own. The originals stay as they are.
 */

import { fileURLToPath } from "node:url";
import project from "../deno.json" with { type: "json" };
import importMap from "./import_map.json" with { type: "json" };
import "./modules.ts"; // where std comes from npm, this puts it into npm's cache

async function copy(from: string, to: string): Promise<void> {
  if ((await Deno.stat(from)).isDirectory) {
    await Deno.mkdir(to, { recursive: true });
    for await (const { name } of Deno.readDir(from)) await copy(`${from}/${name}`, `${to}/${name}`);
  } else {
    await Deno.copyFile(from, to);
    await Deno.utime(to, 0, 0);
  }
}

/** Copies std out of npm's cache, where it comes from there, and returns the flags that take it. */
async function copyStd(folder: string): Promise<string[]> {
  const std = import.meta.resolve("@std/http/status");
  if (!std.startsWith("file:")) return [];
  await copy(fileURLToPath(new URL(".", std)), `${folder}/std/http`);
  const imports = Object.entries(importMap.imports)
    .map(([name, target]) => [name, target.replace(/^npm:\/deno-std@[^/]+/, "./std")]);
  const path = `${folder}/import_map.json`;
  await Deno.writeTextFile(path, JSON.stringify({ imports: Object.fromEntries(imports) }));
  return [`--import-map=${path}`];
}

const folder = await Deno.makeTempDir();
try {
  for (const name of ["main.ts", "deno.json", "deno.lock"]) await copy(name, `${folder}/${name}`);
  const flags = project.tasks.start.command.split(" ").filter((word) => /^(--|-P)/.test(word));
  const options = [...flags, ...await copyStd(folder), `--config=${folder}/deno.json`];
  const output = ["--output", "dist/devops-info-service"];
  const { code } = await new Deno.Command(Deno.execPath(), {
    args: ["compile", ...options, ...output, ...Deno.args, `${folder}/main.ts`],
  }).spawn().status;
  Deno.exitCode = code;
} finally {
  await Deno.remove(folder, { recursive: true });
}
