/**
 * Prints the flags that the tasks of `deno.json` give to Deno, on one line: where std comes from, and what the
 * service may do. With the argument `std` it prints the first part alone, for the suite.
 */

/** The flags of the service in every form: `deno task dev`, `deno task start` and the executable. */
export const SERVICE_FLAGS: readonly string[] = [
  // the runtime's own messages block the service when nobody reads standard error
  "--quiet",
  "--no-prompt",
  // the cache would be a file with a predictable name in the folder for temporary files
  "--no-code-cache",
  // a young generation that fits the processor's cache: docs/benchmarks.md
  "--v8-flags=--max-semi-space-size=1",
  // to listen and to probe: these addresses and no other host, on any port
  "--allow-net=0.0.0.0,[::],127.0.0.1,[::1],localhost",
  // its own variables, and two of Deno that it refuses
  "--allow-env=HOST,PORT,LOG_LEVEL,LOG_FORMAT,TRUST_PROXY,DRAIN_SECONDS,SHUTDOWN_SECONDS," +
  "DENO_SERVE_ADDRESS,DENO_TRUST_PROXY_HEADERS",
  "--allow-sys=hostname,osRelease",
  // code from JSR alone, which has std; without this flag a list of other hosts is allowed
  "--allow-import=jsr.io:443",
];

/** Takes std from the npm package `deno-std` instead of JSR; its lock checks the package. */
const STD_FROM_NPM = ["--lock=.deno-std/deno.lock", "--import-map=.deno-std/import_map.json"];

/** Whether the cache has what is needed of std from JSR. The tasks run this program with `--cached-only`. */
async function hasStd(forSuite: boolean): Promise<boolean> {
  try {
    await import("./modules.ts");
    if (forSuite) await import("@std/assert");
    return true;
  } catch {
    return false;
  }
}

/** Prints a line past the console, which telemetry can take away: `OTEL_DENO_CONSOLE=replace`. */
export function print(output: typeof Deno.stdout | typeof Deno.stderr, line: string): void {
  output.writeSync(new TextEncoder().encode(`${line}\n`));
}

async function canReachJsr(): Promise<boolean> {
  try {
    const signal = AbortSignal.timeout(5000);
    const response = await fetch("https://jsr.io/@std/http/meta.json", { method: "HEAD", signal });
    return response.ok;
  } catch {
    return false;
  }
}

/** The flags that take std from npm, or none where JSR or its cache has it. The suite needs more of std. */
export async function findStd(
  { forSuite = false, isCached = hasStd, isReachable = canReachJsr } = {},
): Promise<string[]> {
  if (await isCached(forSuite) || await isReachable()) return [];
  print(Deno.stderr, "JSR cannot be reached: std comes from npm (deno-std) instead");
  return STD_FROM_NPM;
}

if (import.meta.main) {
  const forSuite = Deno.args[0] === "std";
  const std = await findStd({ forSuite });
  print(Deno.stdout, (forSuite ? std : [...std, ...SERVICE_FLAGS]).join(" "));
}
