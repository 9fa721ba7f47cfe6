/** The proof of what `operations.md` says of signals that come together, early, or from a terminal. */
import { assert, assertEquals, assertGreater, assertMatch, assertObjectMatch } from "@std/assert";
import {
  bindTest,
  type Form,
  FORMS,
  lacks,
  launch,
  makeTempPath,
  readOutput,
  repeatUntil,
  sleep,
  SOURCE,
  start,
  test,
  waitFor,
  waitUntil,
  wrapForm,
} from "../.ci/harness.ts";

const CODES: Record<string, number> = { SIGINT: 130, SIGTERM: 143 };
const FORCED = "ended at once by a second signal";

for (const form of FORMS) {
  const test = bindTest(form);
  const takesTwo = form.isImage && "Docker's client gives up at the third signal";

  test("a third signal changes nothing", async () => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
    service.kill("SIGTERM");
    await service.waitForOutput(/draining/);
    for (const signal of ["SIGINT", "SIGTERM"] as const) service.kill(signal);
    assertEquals(await service.waitForCode(), 130); // the kernel delivers the lower number first
    assertEquals(service.lines.map(({ msg }) => msg), ["listening", "draining", FORCED]);
  }, takesTwo);

  test("a key that is held ends it at once", async () => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
    const press = () => {
      try {
        service.kill("SIGINT");
      } catch { // it has ended
      }
    };
    const held = setInterval(press, 30);
    assertEquals(await service.waitForCode().finally(() => clearInterval(held)), 130);
    assertEquals(service.lines.map(({ msg }) => msg), ["listening", "draining", FORCED]);
  }, takesTwo);

  test("two signals in one moment end it at once, and the log says both", async () => {
    for (let n = 0; n < 3; n++) {
      await Promise.all(
        ([["SIGTERM", "SIGINT"], ["SIGINT", "SIGTERM"]] as const).map(async (signals) => {
          await using service = await start(form, { DRAIN_SECONDS: "300" });
          for (const signal of signals) service.kill(signal);
          const code = await service.waitForCode();
          const { lines } = service;
          assertEquals(lines.map(({ level, msg }) => [level, msg]), [
            ["info", "listening"],
            ["info", "draining"],
            ["warn", FORCED],
          ]);
          const [first, second] = lines.slice(1).map(({ signal }) => String(signal));
          assertEquals([first, second].toSorted(), ["SIGINT", "SIGTERM"]); // the kernel chooses their order
          assertEquals(code, CODES[second!]);
        }),
      );
    }
  });

  test("the same signal within 100 ms counts once; later it ends the service at once", async () => {
    await Promise.all((["SIGTERM", "SIGINT"] as const).map(async (signal) => {
      // where the machine is busy, a moment may pass between the two
      const ended = await repeatUntil((code) => code === 0, async () => {
        await using service = await start(form, { DRAIN_SECONDS: "1" });
        service.kill(signal);
        await service.waitForOutput(/draining/);
        service.kill(signal);
        const code = await service.waitForCode();
        const last = code === 0 ? "stopped" : FORCED;
        assertEquals(service.lines.map(({ msg }) => msg), ["listening", "draining", last]);
        return code;
      });
      assertEquals(ended, 0);
    }));
    await Promise.all((["SIGTERM", "SIGINT"] as const).map(async (signal) => {
      await using service = await start(form, { DRAIN_SECONDS: "300" });
      service.kill(signal);
      await service.waitForOutput(/draining/);
      await sleep(300); // more than the moment of 100 ms
      service.kill(signal);
      assertEquals(await service.waitForCode(), CODES[signal]);
      assertObjectMatch(service.lines.at(-1)!, { level: "warn", msg: FORCED, signal });
    }));
  });
}

for (const form of FORMS.filter(({ isImage }) => isImage)) { // an emulated one starts too late
  test(`${form.name}: as process 1 it hears a signal of its first moments`, async () => {
    await using run = await launch(form, { HOST: "127.0.0.1", PORT: "0" });
    const pid = await waitUntil("the container", () => run.readPid().catch(() => 0));
    const deadline = Date.now() + 8000; // Docker kills after ten seconds
    const end = run.waitForCode();
    let isRunning = true;
    end.finally(() => isRunning = false);
    // the runtime's own start hears nothing; and Docker's client would give up at the third signal
    while (isRunning && Date.now() < deadline) {
      Deno.kill(pid, "SIGTERM");
      await Promise.race([end, sleep(200)]);
    }
    assertMatch(String(await waitFor(end, "the end", 1)), /^(0|143)$/);
  }, Deno.uid() !== 0 && "only root may signal another user's process");
}

/** The task on a terminal whose keys come from a file. */
function taskOnTerminal(keys: string): Form {
  const task: Form = {
    ...SOURCE,
    // `exec`, since `script` runs a shell, and one that stays would get the keys too
    command: () => Promise.resolve([`exec ${Deno.execPath()} task start`, "/dev/null"]),
  };
  return wrapForm(task, ["sh", "-c", `exec script --quiet --return --command "$0" "$1" <>${keys}`]);
}

test(
  "source: Ctrl+C in deno task start drains in order, though two signals come; again it ends at once",
  async () => {
    const keys = makeTempPath("keys");
    await readOutput(["mkfifo", keys]);
    const press = () => Deno.writeTextFile(keys, "\x03");
    {
      await using run = await start(taskOnTerminal(keys));
      await press();
      assertEquals(await run.waitForCode(), 0);
      assertMatch(
        run.stdout,
        /listening .*\r\n.*draining signal=SIGINT seconds=0\r\n.*stopped\r\n$/,
      );
    }
    await using run = await start(taskOnTerminal(keys), { DRAIN_SECONDS: "300" });
    await press();
    await run.waitForOutput(/draining/);
    await sleep(300); // more than the moment of 100 ms
    const begun = Date.now();
    await press();
    assertGreater(await run.waitForCode(), 0);
    assert(Date.now() - begun < 10_000, "at once");
    assertMatch(run.stdout, /draining signal=SIGINT seconds=300\r\n.*WARN .*signal=SIGINT\r\n$/);
  },
  lacks("script"),
  Deno.build.os === "windows" && "no terminal of that kind",
);
