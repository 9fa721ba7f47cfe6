/** The proof of what `reliability.md` says of descriptors that run out, and of the port meanwhile. */
import { assert, assertEquals, assertLess, assertMatch } from "@std/assert";
import {
  bindTest,
  connect,
  type Form,
  formatRequest,
  FORMS,
  lacks,
  leaveOut,
  probe,
  readOutput,
  readResources,
  type RunningService,
  runProgram,
  sleep,
  start,
  waitUntil,
  wrapForm,
} from "../.ci/harness.ts";

const lacksProc = Deno.build.os !== "linux" && "needs /proc";

function readCpuSeconds(pid: number): number {
  const fields = Deno.readTextFileSync(`/proc/${pid}/stat`).split(") ")[1]!.split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100; // user and system, in ticks
}

/** Lets time pass, in which the service must neither spin nor write. */
async function watchIdle(service: RunningService, milliseconds: number) {
  const pid = await service.readPid();
  const [begun, lines] = [readCpuSeconds(pid), service.lines.length];
  await sleep(milliseconds);
  assertLess(readCpuSeconds(pid) - begun, milliseconds / 10_000, "it spins");
  assertEquals(service.lines.length, lines, "it logs in a loop");
}

async function setDescriptors(service: RunningService, most: number) {
  await readOutput(["prlimit", "--pid", String(await service.readPid()), `--nofile=${most}:`]);
}

/** Starts a service whose descriptors are out, so that its listener is away. */
async function startWithoutListener(form: Form): Promise<RunningService> {
  const service = await start(form);
  assertEquals((await probe(service.port)).status, 200); // so that it holds more than the limit allows
  await setDescriptors(service, 5);
  await connect(service.port).then((client) => client.close()).catch(() => {}); // the one too many
  await service.waitForOutput(/cannot accept connections/);
  return service;
}

const OUT = /^(Uncaught )?.*os error (23|24)\b/;

for (const form of FORMS) {
  const test = bindTest(form);
  const foreign = form.isImage && "its process is of another user, whose limits cannot be changed";
  const reasons = [foreign, lacksProc, lacks("prlimit")];

  test("out of descriptors it neither dies nor spins, and recovers", async () => {
    await using service = await start(form, {}, { descriptors: 64 });
    const first = await connect(service.port);
    const attempts = await Promise.allSettled(
      Array.from({ length: 100 }, () => connect(service.port)),
    );
    const clients = attempts.flatMap((attempt) =>
      attempt.status === "fulfilled" ? [attempt.value] : []
    );
    await waitUntil(
      "descriptors to run out",
      async () => (await readResources(service)).descriptors,
      (descriptors) => descriptors >= 60,
    );
    await first.send(formatRequest("/health"));
    assertEquals((await first.receive())?.status, 200, "who is in is served");

    const pid = await service.readPid();
    const begun = readCpuSeconds(pid);
    await sleep(500); // the time to spin in
    assertLess(readCpuSeconds(pid) - begun, 0.25, "it spins");

    for (const client of [first, ...clients]) client.close();
    const isHealthy = async () =>
      (await probe(service.port).catch(() => undefined))?.status === 200;
    await waitUntil("the port to open again", isHealthy);
    assertEquals(await service.readPid(), pid);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
  }, lacksProc);

  test(
    "it says once that it cannot accept connections, tries on, and says once that it can",
    async () => {
      await using service = await startWithoutListener(form);
      await watchIdle(service, 1000);
      await setDescriptors(service, 1024);
      await service.waitForOutput(/accepting connections again/);
      assertEquals((await probe(service.port)).status, 200);
      await watchIdle(service, 500); // nothing tries on
      assertEquals((await probe(service.port)).status, 200);
      service.kill("SIGTERM");
      assertEquals(await service.waitForCode(), 0);
      assertEquals(service.lines.map(({ level, msg }) => [level, msg]), [
        ["info", "listening"],
        ["error", "cannot accept connections"],
        ["info", "accepting connections again"],
        ["info", "draining"],
        ["info", "stopped"],
      ]);
      assertMatch(String(service.lines[1]!.error), OUT);
      assertEquals(service.stderr, "");
    },
    ...reasons,
  );

  test(
    "a port that is taken while its listener is away: one line, exit 1, and no spinning",
    async () => {
      await using service = await startWithoutListener(form);
      const isFree = () => {
        try {
          return Deno.listen({ hostname: "127.0.0.1", port: service.port });
        } catch {
          return undefined;
        }
      };
      using _taker = await waitUntil("the port to be free", isFree);
      await watchIdle(service, 500);
      await setDescriptors(service, 1024);
      assertEquals(await service.waitForCode(), 1);
      assertMatch(service.stderr, /^cannot listen on 127\.0\.0\.1 port \d+: .*in use.*\n$/);
      assertEquals(service.lines.map(({ msg }) => msg), ["listening", "cannot accept connections"]);
    },
    ...reasons,
  );

  /** The form where the kernel refuses to accept once, and then to open the port three times. */
  const failToAccept = (error: string) => {
    const faults = [`inject=accept4:error=${error}:when=2`, `inject=bind:error=${error}:when=2..4`];
    const trace = ["trace=accept4,bind", ...faults].flatMap((expression) => ["-e", expression]);
    return wrapForm(form, ["strace", "-D", "-f", "-qq", "-o", "/dev/null", ...trace]);
  };

  test(
    "descriptors of the whole machine may run out as well; any other failure ends it",
    async (context) => {
      const { code } = await runProgram(["strace", "-o", "/dev/null", "true"]);
      if (code !== 0) return await leaveOut(context, "strace may not trace");
      await using service = await start(failToAccept("ENFILE"));
      await probe(service.port).catch(() => {});
      await service.waitForOutput(/accepting connections again/);
      assertEquals((await probe(service.port)).status, 200);
      const [, failed, again] = service.lines.map(({ time }) => Date.parse(String(time)));
      const seconds = (again! - failed!) / 1000; // for four tries, five of them a second
      assert(seconds > 0.4 && seconds < 4, `${seconds} s`);

      await using ended = await start(failToAccept("ENOMEM"));
      await probe(ended.port).catch(() => {});
      assertEquals(await ended.waitForCode(), 1);
      assertMatch(ended.stderr, /^cannot listen on 127\.0\.0\.1 port 0: .*os error 12.*\n$/);
    },
    form.isImage && "strace is not inside the container",
    lacks("strace"),
  );

  test("a stop while descriptors are out ends in order", async () => {
    await using service = await startWithoutListener(form);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    const messages = service.lines.map(({ msg }) => msg);
    assertEquals(messages, ["listening", "cannot accept connections", "draining", "stopped"]);
    // a run that is measured has no descriptor left for its coverage
    assertEquals(service.stderr.replaceAll(/^Failed to create coverage file .*\n/gm, ""), "");
  }, ...reasons);
}
