/**
 * The proof of `run`: it stops at the first failure, compares what was built twice, and names what it skipped.
 * It runs in a clone where the programs it calls are stubs that write down their calls.
 */
import { assert, assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { makeTempPath, pathOf, readOutput, runProgram, test } from "./harness.ts";

/** Does as little as the script needs to go on. */
const STUB = `#!/bin/sh
call="\${0##*/} $*"
echo "$call" >>"$CALLS"
case "$call" in $FAILING) exit 1 ;; esac
case "$call" in $FAILING_ONCE) mkdir "$CALLS.failed" 2>/dev/null && exit 124 ;; esac
content=same
case "$call" in $DIFFERENT) content=$$ ;; esac
for last; do :; done
case "$call" in
  *"task compile"*) mkdir -p dist && echo "$content" >dist/devops-info-service ;;
  "docker create"*) echo container ;;
  "docker cp"*:/deno-dir*) mkdir -p "$last/dl" ;;
  "docker cp"*) echo "$content" >"$last" ;;
  "docker image inspect --format"*) echo "$content" ;;
  *"task test") echo "with IMAGE=$IMAGE EXECUTABLE=\${EXECUTABLE:+given} FULL=$FULL SOAK=$SOAK" >>"$CALLS" ;;
esac
`;
const PROGRAMS = [
  "npx",
  "docker",
  "apt-get",
  "curl",
  "faketime",
  "timeout",
  "haproxy",
  "nginx",
  "caddy",
  "wrk",
  "slowhttptest",
  "java",
];

interface Behaviour {
  /** The calls that fail, as a pattern of the shell. */
  readonly failing?: string;
  /** The calls that fail the first time. */
  readonly failingOnce?: string;
  /** The calls that give something else each time. */
  readonly different?: string;
}

/** Runs the script and gives what came of it, and the calls it made. */
async function runScript(
  { failing = "none", failingOnce = "none", different = "none" }: Behaviour,
) {
  const folder = makeTempPath("ci");
  const project = `${folder}/parent/project`;
  const calls = `${folder}/calls`;
  await Deno.mkdir(`${folder}/bin`, { recursive: true });
  await Deno.writeTextFile(`${folder}/stub`, STUB, { mode: 0o755 });
  for (const program of [...PROGRAMS, "chromium"]) {
    await Deno.symlink(`${folder}/stub`, `${folder}/bin/${program}`);
  }
  await readOutput(["git", "clone", "--quiet", pathOf(""), project]);
  await Deno.copyFile(pathOf(".ci/run"), `${project}/.ci/run`);
  const outcome = await runProgram([`${project}/.ci/run`], {
    env: {
      PATH: `${folder}/bin:${Deno.env.get("PATH")}`,
      TMPDIR: folder,
      CALLS: calls,
      FAILING: failing,
      FAILING_ONCE: failingOnce,
      DIFFERENT: different,
    },
  });
  return { ...outcome, calls: (await Deno.readTextFile(calls)).trimEnd().split("\n") };
}

const lacksBash = Deno.build.os === "windows" && "needs bash";

/** The calls that a run must make, in their order. */
const STEPS = [
  /^npx .* task ok$/,
  /^npx .*redocly.* lint .*docs\/openapi\.json$/,
  /^npx .*action-validator/,
  /^docker build .*--no-cache/,
  /^docker build .*--no-cache/,
  /^docker build .*OTEL_DENO=true/,
  /task compile$/,
  /task compile$/,
  /^npx .* task test$/,
  /^with IMAGE=\S+ EXECUTABLE=given FULL=1 SOAK=\d+$/,
];

test(".ci/run goes through all steps and ends with what it skipped", async () => {
  const { code, calls, stdout, stderr } = await runScript({});
  assertEquals(code, 0, stdout + stderr);
  let at = 0;
  for (const step of STEPS) {
    const found = calls.findIndex((call, index) => index >= at && step.test(call));
    assert(found >= 0, `no ${step} after ${calls[at - 1]}, in:\n${calls.join("\n")}`);
    at = found + 1;
  }
  assertMatch(stdout.trimEnd().split("\n").at(-1)!, /^skipped: /);
}, lacksBash);

const FAILING = [
  ...["npx*task\\ ok", "npx*redocly*", "npx*action-validator*"],
  ...["docker\\ build*", "npx*task\\ compile", "npx*task\\ test"],
];

test(".ci/run stops at the first failure, whatever fails", async () => {
  await Promise.all(FAILING.map(async (failing) => {
    const { code, calls } = await runScript({ failing });
    assertNotEquals(code, 0, failing);
    const pattern = new RegExp(`^${failing.replaceAll("\\", "").replaceAll("*", ".*")}$`);
    const failed = calls.findIndex((call) => pattern.test(call));
    assert(failed >= 0, `no ${failing} in:\n${calls.join("\n")}`);
    assertEquals(
      calls.slice(failed + 1).filter((call) => /^npx|^docker build/.test(call)),
      [],
      failing,
    );
  }));
}, lacksBash);

const DIFFERENT = ["docker\\ image\\ inspect\\ --format*", "docker\\ cp*", "npx*task\\ compile"];

test(".ci/run bounds and repeats what libfaketime may hang", async () => {
  const { code, calls, stdout, stderr } = await runScript({
    failingOnce: "timeout*\\ task\\ compile",
  });
  assertEquals(code, 0, stdout + stderr);
  assertEquals(
    calls.filter((call) => call.startsWith("timeout --signal=KILL 60 faketime ")).length,
    2,
  );
}, lacksBash);

test(".ci/run fails where two images or executables differ", async () => {
  await Promise.all(DIFFERENT.map(async (different) => {
    const { code, calls } = await runScript({ different });
    assertNotEquals(code, 0, different);
    assertEquals(calls.filter((call) => call.endsWith("task test")), [], different);
  }));
}, lacksBash);

test(".ci/run goes on without Docker, and says so", async () => {
  const { code, stdout, calls } = await runScript({ failing: "docker*" });
  assertEquals(code, 0, stdout);
  assertMatch(stdout, /^skipped: the image: no Docker engine answers$/m);
  assert(calls.some((call) => call.endsWith("task test")), "the suite is run");
}, lacksBash);
