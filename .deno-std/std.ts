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

/** Why JSR cannot be reached, such as a certificate that is not trusted; nothing when it can. */
async function findFault(): Promise<string | undefined> {
  try {
    const signal = AbortSignal.timeout(PATIENCE_MILLISECONDS);
    const { status } = await fetch("https://jsr.io/@std/http/meta.json", {
      method: "HEAD",
      signal,
    });
    return status === 200 ? undefined : `it answers ${status}`;
  } catch (error) {
    return String((error as Error).cause ?? error);
  }
}

function print(output: typeof Deno.stdout | typeof Deno.stderr, line: string): void {
  output.writeSync(new TextEncoder().encode(`${line}\n`));
}

const fault = await isCached(Deno.args) ? undefined : await findFault();
if (fault) {
  print(Deno.stderr, `JSR cannot be reached: std comes from npm (deno-std) instead. ${fault}`);
  print(Deno.stdout, FROM_NPM);
}
