/**
 * Compiles the service into `dist/devops-info-service`: the same bytes from any clone, in any folder, at any
 * time. Arguments go to `deno compile`, `--target` for one.
 *
 * `deno compile` embeds the modification time of each local file (denoland/deno#31746), those in npm's cache
 * among them, and takes in a `package.json` of a parent folder. So it gets copies with a fixed time in a folder
 * of their own. The originals stay as they are.
 */

import { fileURLToPath } from "node:url";
import importMap from "./import_map.json" with { type: "json" };
import { findStd, print, SERVICE_FLAGS } from "./flags.ts";

async function copy(from: string, to: string): Promise<void> {
  if ((await Deno.stat(from)).isDirectory) {
    await Deno.mkdir(to, { recursive: true });
    for await (const { name } of Deno.readDir(from)) await copy(`${from}/${name}`, `${to}/${name}`);
  } else {
    await Deno.copyFile(from, to);
    await Deno.utime(to, 0, 0);
  }
}

/** Copies std from npm's cache and returns the flags that take it from there. */
async function copyStd(flags: readonly string[], folder: string): Promise<string[]> {
  const script =
    "import './.deno-std/modules.ts'; console.log(import.meta.resolve('@std/http/status'))";
  const deno = new Deno.Command(Deno.execPath(), {
    args: ["eval", "--quiet", ...flags, script],
    // or telemetry takes the line that is read here
    env: { OTEL_DENO: "false", OTEL_DENO_CONSOLE: "ignore" },
    stderr: "inherit",
  });
  const { success, stdout } = await deno.output();
  if (!success) throw new Error("std cannot be found in npm's cache");
  const http = new URL(".", new TextDecoder().decode(stdout));
  await copy(fileURLToPath(http), `${folder}/std/http`);
  const imports = Object.entries(importMap.imports)
    .map(([name, target]) => [name, target.replace(/^npm:\/deno-std@[^/]+/, "./std")]);
  const path = `${folder}/import_map.json`;
  await Deno.writeTextFile(path, JSON.stringify({ imports: Object.fromEntries(imports) }));
  return [`--import-map=${path}`];
}

const folder = await Deno.makeTempDir();
try {
  for (const name of ["main.ts", "deno.json", "deno.lock"]) await copy(name, `${folder}/${name}`);
  const fromNpm = await findStd();
  const std = fromNpm.length > 0 ? await copyStd(fromNpm, folder) : [];
  const options = [...std, ...SERVICE_FLAGS, `--config=${folder}/deno.json`];
  const { code } = await new Deno.Command(Deno.execPath(), {
    args: [
      "compile",
      ...options,
      "--output",
      "dist/devops-info-service",
      ...Deno.args,
      `${folder}/main.ts`,
    ],
  }).spawn().status;
  Deno.exitCode = code;
} catch (error) {
  print(Deno.stderr, String(error));
  Deno.exitCode = 1;
} finally {
  await Deno.remove(folder, { recursive: true });
}
