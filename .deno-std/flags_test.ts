/** The proof of `flags.ts`: what every form of the service may do, and that the tasks give it no more. */
import { assertEquals, assertMatch, assertNotMatch } from "@std/assert";
import project from "../deno.json" with { type: "json" };
import {
  DEFAULTS,
  makeTempPath,
  pathOf,
  readOutput,
  readSourceFlags,
  runProgram,
  test,
} from "../.ci/harness.ts";
import { SERVICE_FLAGS } from "./flags.ts";

test("the service may listen, probe, read its variables and the machine, nothing else", async () => {
  const attempts = `
    const tries = {
      net: () => Deno.connect({ hostname: "127.0.0.2", port: 1 }),
      fetch: () => fetch("http://example.com"),
      env: () => Deno.env.get("HOME"),
      sys: () => Deno.networkInterfaces(),
      read: () => Deno.readTextFile("deno.json"),
      write: () => Deno.writeTextFile("dist/x", ""),
      run: () => new Deno.Command("true").output(),
      ffi: () => Deno.dlopen("libc.so.6", {}),
      import: () => import(["https://deno.land", "mod.ts"].join("/")),
      HOST: () => Deno.env.get("HOST"),
      hostname: () => Deno.hostname(),
      osRelease: () => Deno.osRelease(),
      refused: () => Deno.env.get("DENO_SERVE_ADDRESS"),
    };
    for (const [name, attempt] of Object.entries(tries)) {
      try { await attempt(); console.log(name, "allowed"); }
      catch (error) { console.log(name, error.message.match(/Requires \\w+ access/)?.[0] ?? error); }
    }`;
  const program = makeTempPath("attempts.js");
  Deno.writeTextFileSync(program, attempts);
  const flags = [`--config=${pathOf("deno.json")}`, ...await readSourceFlags()];
  const output = await readOutput([Deno.execPath(), "run", ...flags, program]);
  assertEquals(output.split("\n"), [
    ...["net", "fetch", "env", "sys", "read", "write", "run", "ffi", "import"]
      .map((name) => `${name} Requires ${name === "fetch" ? "net" : name} access`),
    ...["HOST", "hostname", "osRelease", "refused"].map((name) => `${name} allowed`),
  ]);
});

test("source: without a permission it needs it says so on one line, and exits 2", async () => {
  const flags = (await readSourceFlags()).filter((flag) => !flag.startsWith("--allow-env"));
  const { code, stdout, stderr } = await runProgram([Deno.execPath(), "run", ...flags, "main.ts"]);
  assertEquals([code, stdout], [2, ""]);
  assertMatch(stderr, /^.*env access.*\n$/);
});

test("std comes from npm only where JSR is neither cached nor reachable", async () => {
  const program = makeTempPath("std.js");
  Deno.writeTextFileSync(
    program,
    `import { findStd } from "file://${pathOf(".deno-std/flags.ts")}";
    for (const [cached, reachable] of [[true, true], [true, false], [false, true], [false, false]]) {
      const std = await findStd({ isCached: async () => cached, isReachable: async () => reachable });
      console.log(cached, reachable, std.length > 0);
    }`,
  );
  const { stdout, stderr } = await runProgram([Deno.execPath(), "run", "--no-config", program]);
  assertEquals(stdout, "true true false\ntrue false false\nfalse true false\nfalse false true\n");
  assertMatch(stderr, /^JSR cannot be reached: std comes from npm/m);
});

test("dev and start run with exactly the flags that the executable is compiled with", async () => {
  const variables = [...Object.keys(DEFAULTS), "DENO_SERVE_ADDRESS", "DENO_TRUST_PROXY_HEADERS"];
  assertEquals(SERVICE_FLAGS, [
    ...["--quiet", "--no-prompt", "--no-code-cache", "--v8-flags=--max-semi-space-size=1"],
    "--allow-net=0.0.0.0,[::],127.0.0.1,[::1],localhost",
    `--allow-env=${variables}`,
    "--allow-sys=hostname,osRelease",
    "--allow-import=jsr.io:443",
  ]);
  const isOfStd = (flag: string) => /^--(lock|import-map)=\.deno-std\//.test(flag);
  assertEquals((await readSourceFlags()).filter((flag) => !isOfStd(flag)), SERVICE_FLAGS);
  for (const task of ["dev", "start"] as const) {
    assertMatch(project.tasks[task].command, / \$\(deno task -q flags\) /);
    assertNotMatch(project.tasks[task].command, /--allow|--deny|-A|-P/);
  }
});
