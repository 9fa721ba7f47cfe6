/** The proof of `multi-stage-build.md`: what the image is, and how it runs. */
import { assert, assertEquals, assertMatch, assertObjectMatch } from "@std/assert";
import { HARDENED, IMAGE, IMAGE_MEMORY } from "../.test/forms.ts";
import { docker, inspect, makeTempPath, readOutput, runProgram } from "../.test/programs.ts";
import { leaveOut, spec } from "../.test/run.ts";
import { sleep, waitUntil } from "../.test/waiting.ts";

const image = IMAGE ?? "";
/** Docker's probes take their time on a busy machine. */
const PATIENCE_SECONDS = 120;
const NO_IMAGE = !IMAGE && "IMAGE names none";

/** The files of an image, each with its mode and owner. */
async function listFiles(name: string): Promise<Map<string, string>> {
  const container = await docker("create", name, "/none");
  const archive = makeTempPath("image.tar");
  await docker("export", "--output", archive, container).finally(() => docker("rm", container));
  const list = await readOutput(["tar", "-tv", "--numeric-owner", "-f", archive]);
  return new Map(
    list.split("\n").map((line) => {
      const [mode = "", owner = "", _size, _day, _time, path = ""] = line.split(/\s+/);
      return [path, `${mode} ${owner}`];
    }),
  );
}

Deno.test(spec("image: adds one file to its base, which nobody may write", async (context) => {
  const labels = await inspect(image, ".Config.Labels");
  const base = labels["org.opencontainers.image.base.name"];
  const { code } = await runProgram(["docker", "image", "inspect", base]);
  if (code !== 0) return await leaveOut(context, `${base} is not here`);
  const [before, after] = [await listFiles(base), await listFiles(image)];
  const added = [...after].filter(([path]) => !before.has(path));
  assertEquals(added, [["devops-info-service", "-r-xr-xr-x 0/0"]]);
}, { unless: NO_IMAGE }));

Deno.test(spec("image: says how it runs", async () => {
  const { Env, ...config } = await inspect(image, ".Config");
  const [Entrypoint, ExposedPorts] = [["/devops-info-service"], { "5000/tcp": {} }];
  assertObjectMatch(config, { User: "65532:65532", Entrypoint, ExposedPorts });
  assert(Env.includes("DENO_USE_CGROUPS=1"), "the heap goes by the container's memory");
  const second = 1e9;
  const { Interval, StartPeriod } = config.Healthcheck;
  assert(Interval <= 30 * second && StartPeriod > 4 * second, "emulated, it starts in 4 s");
}, { unless: NO_IMAGE }));

Deno.test(spec("a build for a processor without a runtime is refused", async (context) => {
  const options = ["--platform", "linux/riscv64", "--target", "builder"];
  const version = ["--build-arg", "DENO_VERSION"]; // the environment's, or the Dockerfile's own
  const { code, stderr } = await runProgram(["docker", "build", ...options, ...version, "."]);
  if (stderr.includes("failed to do request")) return await leaveOut(context, "no registry");
  assertEquals(code, 1);
  assertMatch(stderr, /TARGETARCH=riscv64 is not supported/);
}, { unless: NO_IMAGE }));

/** A container in the background. Leaving its scope removes it. */
async function runContainer(...args: string[]) {
  const name = `devops-info-service-${crypto.randomUUID()}`;
  await docker("run", "--detach", "--name", name, ...args);
  return { name, [Symbol.asyncDispose]: async () => void await docker("rm", "--force", name) };
}

/** Waits for what Docker's probe finds: a status and a line. */
async function waitForHealth(container: string, expected: string, line: RegExp) {
  const look = async () => {
    await sleep(200); // Docker's client would keep a processor busy
    return await inspect(container, ".State.Health");
  };
  const isRight = ({ Status, Log }: { Status: string; Log: { Output: string }[] }) =>
    Status === expected && line.test(Log.at(-1)?.Output ?? "");
  await waitUntil(`${expected}, ${line}`, look, isRight, PATIENCE_SECONDS);
}

Deno.test(spec("image: the probe sees a drill, and a service that hangs", async () => {
  const often = ["--health-interval", "1s", "--health-retries", "1"];
  await using container = await runContainer(...often, image);
  const states = [
    { signal: "", status: "healthy", line: /^200 {"status":"healthy"/ },
    { signal: "USR2", status: "unhealthy", line: /: 503 {"status":"unhealthy"/ },
    { signal: "USR2", status: "healthy", line: /^200/ },
    { signal: "STOP", status: "unhealthy", line: /no answer within 2 seconds/ },
    { signal: "CONT", status: "healthy", line: /^200/ },
  ];
  for (const { signal, status, line } of states) {
    if (signal) await docker("kill", "--signal", signal, container.name);
    await waitForHealth(container.name, status, line);
  }
}, { unless: NO_IMAGE }));

const RUNS = [
  { name: "image as its own user", options: [] },
  // bridge networks have no IPv6 by default, and :: is fine there all the same
  { name: "image as 12345 on ::", options: ["-u", "12345", "-e", "HOST=::"] },
];
for (const { name, options } of RUNS) {
  Deno.test(spec(`${name}: hardened, it serves, and docker stop ends it in order`, async () => {
    const limits = [...HARDENED, "--memory", IMAGE_MEMORY, "--health-interval", "1s"];
    await using container = await runContainer(...limits, ...options, image);
    await waitForHealth(container.name, "healthy", /^200/);
    await docker("stop", container.name);
    assertEquals(await inspect(container.name, ".State.ExitCode"), 0);
    assertMatch(await docker("logs", container.name), /"msg":"stopped"}$/);
  }, { unless: NO_IMAGE }));
}
