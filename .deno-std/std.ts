/**
 * Prints the flags that take std from npm's package `deno-std`, or nothing where JSR or Deno's
 * cache has std. Arguments name modules that are needed besides those of the service. It runs with
 * `--cached-only`, and writes past the console, which telemetry may redirect.
 */

const FROM_NPM = "--lock=.deno-std/deno.lock --import-map=.deno-std/import_map.json";
const PATIENCE_MILLISECONDS = 5000;

async function isCached(modules: readonly string[]): Promise<boolean> {
  try {
    await import("./modules.ts"); // by a name in a variable it would need permission to read
    for (const name of modules) await import(name);
    return true;
  } catch {
    return false;
  }
}

async function canReachJsr(): Promise<boolean> {
  try {
    const signal = AbortSignal.timeout(PATIENCE_MILLISECONDS);
    const response = await fetch("https://jsr.io/@std/http/meta.json", { method: "HEAD", signal });
    return response.ok;
  } catch {
    return false;
  }
}

function print(output: typeof Deno.stdout | typeof Deno.stderr, line: string): void {
  output.writeSync(new TextEncoder().encode(`${line}\n`));
}

if (!await isCached(Deno.args) && !await canReachJsr()) {
  print(Deno.stderr, "JSR cannot be reached: std comes from npm (deno-std) instead");
  print(Deno.stdout, FROM_NPM);
}
