/** The proof of `multi-stage-build.md`: what the Dockerfile says, and what the image is. */
import {
  assert,
  assertEquals,
  assertGreater,
  assertGreaterOrEqual,
  assertLess,
  assertMatch,
  assertStringIncludes,
} from "@std/assert";
import {
  ARM64_IMAGE,
  docker,
  HARDENED,
  IMAGE,
  IMAGE_MEMORY,
  inspect,
  leaveOut,
  makeTempPath,
  probe,
  readOutput,
  readText,
  runContainer,
  runProgram,
  test,
  waitUntil,
} from "../.ci/harness.ts";

// ---- The Dockerfile ----

/** An instruction: its name and the rest, on one line. */
type Instruction = readonly [string, string];

/** The stages of the Dockerfile, each with its instructions; what stands before the first is a stage as well. */
function parseDockerfile(): Instruction[][] {
  const text = readText("Dockerfile").replace(/^\s*#.*\n/gm, "").replace(/\\\n/g, " ");
  const stages: Instruction[][] = [[]];
  for (const line of text.split("\n").filter(Boolean)) {
    const [, name = "", rest = ""] = /^(\S+)\s+(.*)$/.exec(line)!;
    if (name === "FROM") stages.push([]);
    stages.at(-1)!.push([name, rest.replace(/\s+/g, " ")]);
  }
  return stages;
}

function findAll(stage: Instruction[], name: string): string[] {
  return stage.filter(([found]) => found === name).map(([, rest]) => rest);
}

test("the final stage runs the executable, as a user without rights, with a probe, and nothing else", () => {
  const final = parseDockerfile().at(-1)!;
  const labels = Object.fromEntries(
    Array.from(
      findAll(final, "LABEL").join(" ").matchAll(/(\S+)="(.*?)"/g),
      ([, name, value]) => [name!, value!],
    ),
  );
  const base = findAll(final, "FROM")[0]!;
  assertMatch(base, /^gcr\.io\/distroless\/cc-debian\d+:nonroot$/);
  assertEquals(labels["org.opencontainers.image.base.name"], base);
  assertEquals(labels["org.opencontainers.image.title"], "devops-info-service");
  assertEquals(findAll(final, "COPY"), [
    "--from=builder --chmod=0555 /build/dist/devops-info-service /devops-info-service",
  ]);
  assertEquals(findAll(final, "USER"), ["65532:65532"]);
  assertEquals(findAll(final, "EXPOSE"), ["5000"]);
  assertEquals(findAll(final, "ENTRYPOINT"), ['["/devops-info-service"]']);
  for (const name of ["CMD", "RUN", "ADD", "VOLUME", "WORKDIR"]) {
    assertEquals(findAll(final, name), [], name);
  }

  const env = findAll(final, "ENV").join(" ").split(" ").map((entry) => entry.split("="));
  const { DENO_USE_CGROUPS, OTEL_EXPORTER_OTLP_TIMEOUT, ...others } = Object.fromEntries(env);
  assertEquals([DENO_USE_CGROUPS, others], ["1", {}]);
  assertLess(
    Number(OTEL_EXPORTER_OTLP_TIMEOUT),
    2000,
    "in milliseconds, below what a probe may take",
  );
});

test("the probe runs often, and Docker gives it longer than it gives itself", () => {
  const [healthcheck = ""] = findAll(parseDockerfile().at(-1)!, "HEALTHCHECK");
  assertMatch(healthcheck, / CMD \["\/devops-info-service", "--health"\]$/);
  const read = (option: string) =>
    Number(new RegExp(`--${option}=(\\d+)s?\\b`).exec(healthcheck)?.[1]);
  const [, limit] = /const PROBE_SECONDS = (\d+);/.exec(readText("main.ts"))!;
  assertGreater(read("timeout"), Number(limit), "timeout");
  assertGreater(read("interval"), read("timeout"), "interval");
  assertLess(read("interval"), 31, "interval");
  assert([2, 3, 4, 5].includes(read("retries")), "retries");
  assertGreater(read("start-period"), 4, "emulated, it takes 4 s to start");
});

test("the builder compiles for the target on the machine's own processor, without telemetry by default", () => {
  const [before, builder] = parseDockerfile();
  assertMatch(findAll(before!, "ARG").join(), /^DENO_VERSION=\d+\.\d+\.\d+$/);
  assertEquals(findAll(builder!, "FROM"), [
    "--platform=$BUILDPLATFORM denoland/deno:${DENO_VERSION} AS builder",
  ]);
  assert(findAll(builder!, "ARG").includes("OTEL_DENO=false"), "telemetry is off by default");
  assert(findAll(builder!, "ARG").includes("TARGETARCH"), "TARGETARCH");
  const commands = findAll(builder!, "RUN").join("\n");
  assertStringIncludes(commands, "deno task compile --target");
  for (
    const [arch, target] of [["amd64", "x86_64-unknown-linux-gnu"], [
      "arm64",
      "aarch64-unknown-linux-gnu",
    ]]
  ) {
    assertStringIncludes(commands, `${arch}) echo ${target} ;;`);
  }
  assertMatch(
    commands,
    /\*\) echo "TARGETARCH=\$TARGETARCH is not supported.*" >&2; exit 1 ;;/,
    "another processor is refused",
  );
  assertMatch(commands, /if \[ "\$OTEL_DENO" = true \]; then export OTEL_DENO_CONSOLE=replace; fi/);
  assertMatch(
    commands,
    /touch --date @0 dist\/devops-info-service$/,
    "the same layer from any clone",
  );
});

test("the document quotes the lines of the Dockerfile, in their order", () => {
  const join = (text: string) => text.replaceAll(/\s*\\?\n\s*/g, " ");
  const dockerfile = join(readText("Dockerfile"));
  const blocks = readText("docs/multi-stage-build.md").matchAll(/```dockerfile\n([^]*?)```/g);
  const pieces = Array.from(blocks, ([, block]) => block!.trim().split(/\n(?! )|…/)).flat();
  assertGreater(pieces.length, 10);
  let at = 0;
  for (const piece of pieces) {
    at = dockerfile.indexOf(join(piece).trim(), at);
    assertGreaterOrEqual(at, 0, piece);
  }
});

test("README, Dockerfile and Compose name the same version of Deno", () => {
  const [, pinned] = /^ARG DENO_VERSION=(.+)$/m.exec(readText("Dockerfile"))!;
  const named = readText("README.md").matchAll(/\bdeno@([\d.]+)/g);
  assertEquals([...new Set(Array.from(named, ([, version]) => version))], [pinned]);
  assertStringIncludes(readText("docs/deploy/compose.yaml"), `DENO_VERSION:-${pinned}}`);
});

// ---- The image ----

const lacksImage = !IMAGE && "IMAGE names none";
const image = IMAGE ?? "";

test("image: says how to run it, with the least rights", async () => {
  const config = await inspect(".Config", image);
  assertEquals(config.User, "65532:65532");
  assertEquals(config.Entrypoint, ["/devops-info-service"]);
  assertEquals([config.Cmd ?? null, config.Volumes ?? null], [null, null]);
  assertEquals(Object.keys(config.ExposedPorts), ["5000/tcp"]);
  assert(config.Env.includes("DENO_USE_CGROUPS=1"), `${config.Env}`);
  assertEquals(config.Healthcheck.Test, ["CMD", "/devops-info-service", "--health"]);
  const [title, ...others] = ["title", "description", "licenses"]
    .map((name) => config.Labels[`org.opencontainers.image.${name}`]);
  assertEquals([title, others.every(Boolean)], ["devops-info-service", true]);
}, lacksImage);

/** The files of an image, each with its mode and owner. */
async function listFiles(name: string) {
  const container = await docker("create", name, "/none");
  const archive = makeTempPath("image.tar");
  try {
    await docker("export", "--output", archive, container);
  } finally {
    await docker("rm", container);
  }
  const list = await readOutput([
    "tar",
    "--list",
    "--verbose",
    "--numeric-owner",
    "--file",
    archive,
  ]);
  return new Map(
    list.split("\n").map((line) => {
      const [mode = "", owner = "", _size, _day, _time, path = ""] = line.split(/\s+/);
      return [path, `${mode} ${owner}`];
    }),
  );
}

test("image: adds one file to its base, root's and writable by nobody", async (context) => {
  const base = await inspect('(index .Config.Labels "org.opencontainers.image.base.name")', image);
  const { code } = await runProgram(["docker", "image", "inspect", base]);
  if (code !== 0) return await leaveOut(context, `${base} is not here`);
  const [before, after] = [await listFiles(base), await listFiles(image)];
  const added = [...after].filter(([path]) => !before.has(path));
  assertEquals(added, [["devops-info-service", "-r-xr-xr-x 0/0"]]);
}, lacksImage);

test("image: SIGUSR2 takes Docker from healthy to unhealthy and back", async () => {
  await using container = await runContainer(
    "--health-interval",
    "1s",
    "--health-retries",
    "1",
    image,
  );
  const { name } = container;
  const waitForHealth = (expected: string) =>
    waitUntil(
      expected,
      () => inspect(".State.Health.Status", name),
      (status) => status === expected,
    );
  await waitForHealth("healthy");
  await docker("kill", "--signal", "USR2", name);
  await waitForHealth("unhealthy");
  const { Output } = (await inspect(".State.Health.Log", name)).at(-1);
  assertMatch(Output, /503 {"status":"unhealthy"/);
  await docker("kill", "--signal", "USR2", name);
  await waitForHealth("healthy");
}, lacksImage);

// bridge networks have no IPv6 by default, and :: is fine there all the same
for (const [user, host] of [["65532:65532", "0.0.0.0"], ["12345:54321", "::"]] as const) {
  test(`image: hardened and as ${user} it becomes healthy and leaves in order`, async () => {
    await using container = await runContainer(
      ...["--user", user, "--publish", "127.0.0.1::5000", "--env", `HOST=${host}`],
      ...["--health-interval", "1s", ...HARDENED, "--memory", IMAGE_MEMORY, image],
    );
    const { name } = container;
    const readHealth = async () => {
      const { Running, Health } = await inspect(".State", name);
      if (!Running) throw new Error(`it ended: ${await docker("logs", name)}`);
      return Health;
    };
    const health = await waitUntil("a health", readHealth, ({ Status }) => Status !== "starting");
    assertEquals(health.Status, "healthy", JSON.stringify(health));
    const port = Number((await docker("port", name, "5000/tcp")).split(":").at(-1));
    assertEquals((await probe(port)).status, 200);
    const begun = Date.now();
    await docker("stop", name);
    assertLess(Date.now() - begun, 5000, "docker kills after 10 s");
    assertEquals(await inspect(".State.ExitCode", name), 0);
  }, lacksImage);
}

test("arm64 image: docker stop ends it in order", async () => {
  await using container = await runContainer(
    "--platform",
    "linux/arm64",
    ...HARDENED,
    ARM64_IMAGE!,
  );
  const readLog = () => docker("logs", container.name);
  await waitUntil("the start", readLog, (log) => log.includes('"msg":"listening"'));
  await docker("stop", container.name);
  assertEquals(await inspect(".State.ExitCode", container.name), 0);
  assertMatch(await readLog(), /"msg":"stopped"}$/);
}, !ARM64_IMAGE && "ARM64_IMAGE names none");
