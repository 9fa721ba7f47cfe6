/** The proof of what `reliability.md` says of who reads standard output and standard error, or does not. */
import { assertEquals, assertLess, assertMatch } from "@std/assert";
import {
  bindTest,
  connect,
  type Form,
  formatHeaders,
  formatRequest,
  formatReset,
  FORMS,
  HTTP2_PREFACE,
  IS_FULL,
  lacks,
  lacksDescriptors,
  launch,
  OTHER_PATH,
  probe,
  repeatUntil,
  type RunningService,
  share,
  sleep,
  start,
  waitFor,
  wrapForm,
} from "../.ci/harness.ts";

/** Sends a thousand requests and a probe on one connection. */
async function sendBatch({ port }: RunningService, path: string, status: number) {
  using connection = await connect(port);
  const probe = formatRequest("/health", { version: "HTTP/1.0" });
  const sending = connection.send(formatRequest(path).repeat(1000) + probe);
  const answers = await connection.receiveAll();
  await sending;
  assertEquals(answers.split(`HTTP/1.1 ${status} `).length - 1, 1000);
  assertMatch(answers, /"status":"healthy"/);
}

/** The form with a setting of a file descriptor, by the system's call. */
function setUp(form: Form, setting: string): Form {
  return wrapForm(form, ["perl", "-MFcntl", "-e", `${setting} or die; exec @ARGV`]);
}

/** Makes a handle the end of a full pipe that nobody reads. */
function fillPipe(handle: "STDOUT" | "STDERR"): string {
  return "$^F = 99; pipe(R, W); fcntl(W, F_SETFL, O_WRONLY | O_NONBLOCK); 1 while syswrite(W, 'x' x 4096); " +
    `fcntl(W, F_SETFL, O_WRONLY); open(${handle}, '>&W')`;
}

const PIPES = {
  "a pipe": (form: Form) => form,
  "a pipe that does not block": (form: Form) =>
    setUp(form, "fcntl(STDOUT, F_SETFL, O_WRONLY | O_NONBLOCK)"),
};

for (const form of FORMS) {
  const test = bindTest(form);
  const readByDocker = form.isImage && "Docker reads its standard output, whoever else does";

  for (const [name, makePipe] of Object.entries(PIPES)) {
    const reasons = [readByDocker, name !== "a pipe" && lacks("perl")];

    // 4,000 lines are 700 kB: more than a pipe holds, and less than the service keeps
    for (const [batches, isTooMuch] of [[4, false], [15, true]] as const) {
      const outcome = isTooMuch ? "costs lines, which are counted," : "costs no line";
      test(
        `${name} that nobody reads for ${batches},000 requests ${outcome} and no request`,
        async () => {
          await using service = await start(makePipe(form));
          service.pause();
          for (let n = 0; n < batches; n++) await sendBatch(service, OTHER_PATH, 404);
          service.resume();
          await service.waitForOutput(isTooMuch ? /log lines dropped/ : /"msg":"request"/);
          service.kill("SIGTERM");
          assertEquals(await service.waitForCode(), 0);
          const lines = service.lines; // none is torn
          const seen = lines.filter(({ msg }) => msg === "request").length;
          const dropped = lines.filter(({ msg }) => msg === "log lines dropped")
            .reduce((sum, line) => sum + Number(line.dropped), 0);
          assertEquals([seen + dropped, dropped > 0], [batches * 1000, isTooMuch]);
        },
        ...reasons,
      );
    }
  }

  for (const leave of ["abandon", "pause"] as const) {
    const reader = leave === "abandon"
      ? "went away costs lines only"
      : "hangs does not delay the end";
    test(`a reader that ${reader}`, async () => {
      for (
        const [env, signals, codes, most] of [
          [{}, ["SIGTERM"], /^0$/, 2500], // the log waits a second
          [{ DRAIN_SECONDS: "300" }, ["SIGTERM", "SIGINT"], /^(130|143)$/, 1000], // a tenth
        ] as const
      ) {
        const milliseconds = await repeatUntil((taken) => taken < most, async () => {
          await using service = await start(form, env);
          await service[leave]();
          await sendBatch(service, "/", 200);
          const begun = performance.now();
          for (const signal of signals) service.kill(signal);
          assertMatch(String(await service.waitForCode()), codes);
          return performance.now() - begun;
        });
        assertLess(milliseconds, most);
      }
    }, readByDocker);
  }

  test(
    "a second signal decides the exit code while the log of a cut stop waits for its reader",
    async () => {
      // where the machine is busy, the service may have ended before the second signal
      const ended = await repeatUntil((code) => code === 143, async () => {
        await using service = await start(form, { SHUTDOWN_SECONDS: "0" });
        using head = await connect(service.port);
        await head.send("GET / HTTP/1.1\r\n"); // 2.7.11 waits for the rest
        using body = await connect(service.port);
        await body.send(formatRequest("/", { method: "PUT", fields: "Content-Length: 9\r\n" })); // as does 2.9.6
        service.pause();
        await sendBatch(service, "/", 200);
        service.kill("SIGTERM");
        await sleep(930); // of the second that the log waits
        service.kill("SIGTERM");
        return await service.waitForCode();
      });
      assertEquals(ended, 143);
    },
    readByDocker,
  );

  test("a full pipe delays no message by more than a second", async () => {
    const service = await share(form);
    const PORT = String(service.port);
    const cases = [
      ["STDERR", { PORT: "bad" }, [], 2],
      ["STDERR", { PORT }, [], 1],
      ["STDOUT", { PORT }, ["--health"], 0],
      ["STDOUT", {}, ["--help"], 0],
    ] as const;
    await Promise.all(cases.map(async ([handle, env, args, code]) => {
      await using run = await launch(
        setUp(form, fillPipe(handle)),
        { HOST: "127.0.0.1", ...env },
        args,
      );
      assertEquals(await waitFor(run.waitForCode(), `an end with a full ${handle}`, 8), code);
    }));
  }, readByDocker || lacks("perl"));

  // where the runtime wrote a line for each, a hundred would fill such a pipe, and what is read ahead of it
  const connections = IS_FULL ? 1000 : 300;
  test(
    `streams opened and reset at once on ${connections} connections: probes answer, standard error is empty`,
    async () => {
      const F_SETPIPE_SZ = 1031;
      await using service = await start(
        form.isImage ? form : setUp(form, `fcntl(STDERR, ${F_SETPIPE_SZ}, 4096)`),
        {},
        { memory: "512m" },
      );
      service.pause();
      const authority = `127.0.0.1:${service.port}`;
      const streams = Array.from({ length: 100 }, (_, n) => {
        const fields = [[":method", "GET"], [":scheme", "http"], [":authority", authority], [
          ":path",
          "/",
        ]];
        return formatHeaders(2 * n + 1, fields as [string, string][]) + formatReset(2 * n + 1);
      });
      for (let n = 0; n < connections; n++) {
        using client = await connect(service.port);
        await client.send(HTTP2_PREFACE + streams.join("")).catch(() => {}); // it may have had enough
        if (n % 50 === 0) assertEquals((await probe(service.port)).status, 200);
      }
      for (let n = 0; n < 10; n++) assertEquals((await probe(service.port)).status, 200);
      service.resume();
      service.kill("SIGTERM");
      await service.waitForCode();
      assertEquals(service.stderr, "");
    },
    Deno.build.os !== "linux" && "needs a pipe that can be made smaller",
    !form.isImage && lacks("perl"),
    lacksDescriptors(connections + 200),
  );
}
