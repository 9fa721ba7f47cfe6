/** The proof of what `operations.md` says of logs: lines, levels, forms, and what waits for a reader. */
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertGreaterOrEqual,
  assertLess,
  assertLessOrEqual,
  assertMatch,
} from "@std/assert";
import { type Config, createClock, createLogger } from "../main.ts";
import project from "../deno.json" with { type: "json" };
import {
  bindTest,
  connect,
  DEFAULTS,
  findFreePort,
  formatRequest,
  FORMS,
  inTerminal,
  isRefused,
  lacks,
  launch,
  OTHER_PATH,
  probe,
  RFC_3339,
  sendRaw,
  start,
  waitUntil,
} from "../.ci/harness.ts";

const NOON = "2026-01-07T12:00:00.000Z";
const CLOCK = createClock(() => Date.parse(NOON), () => 0);

// ---- As a function ----

type Sink = (bytes: Uint8Array) => number | Promise<number>;

/** A logger at noon, and what it has written. */
function loggerFor(sink: Sink = (bytes) => bytes.length, config: Partial<Config> = {}) {
  const written = { text: "" };
  const log = createLogger({ ...DEFAULTS, ...config }, CLOCK, async (bytes) => {
    const copy = bytes.slice();
    const length = await sink(copy);
    written.text += new TextDecoder("latin1").decode(copy.subarray(0, length));
    return length;
  });
  const readLines = () => written.text.trimEnd().split("\n").map((line) => JSON.parse(line));
  return { log, written, readLines };
}

const QUEUE_BYTES = 1024 * 1024;

Deno.test("createLogger() writes the agreed keys in their order, in both forms", async () => {
  for (
    const [LOG_FORMAT, expected] of [
      ["json", `{"time":"${NOON}","level":"warn","msg":"a message","n":1,"s":"a \\"b\\""}\n`],
      ["text", `${NOON} WARN  a message n=1 s="a \\"b\\""\n`],
    ] as const
  ) {
    const { log, written } = loggerFor(undefined, { LOG_FORMAT });
    log.write("warn", "a message", { n: 1, s: 'a "b"' });
    log.write("debug", "not for this level");
    await log.flush(1000);
    assertEquals(written.text, expected);
  }
});

Deno.test("createLogger() quotes in text what would not stand as one value", async () => {
  const values = ["a", "/x.y-z:1", 1.5, "a b", "a=b", "", '"', "\\", "a,b", "\n"];
  const { log, written } = loggerFor(undefined, { LOG_FORMAT: "text" });
  for (const value of values) log.write("info", "m", { value });
  await log.flush(1000);
  assertEquals(written.text.trimEnd().split("\n").map((line) => line.split(" value=")[1]), [
    ...["a", "/x.y-z:1", "1.5", '"a b"', '"a=b"', '""', '"\\""', '"\\\\"', '"a,b"', '"\\n"'],
  ]);
});

Deno.test("createLogger() writes from its level on, in every level", async () => {
  const levels = ["debug", "info", "warn", "error"] as const;
  for (const [index, LOG_LEVEL] of levels.entries()) {
    let text = "";
    const sink = (bytes: Uint8Array) => {
      text += new TextDecoder().decode(bytes);
      return Promise.resolve(bytes.length);
    };
    const log = createLogger({ ...DEFAULTS, LOG_LEVEL }, CLOCK, sink);
    for (const level of levels) log.write(level, "m");
    await log.flush(1000);
    const expected = levels.slice(index);
    assertEquals(levels.filter(log.isEnabled), expected);
    const lines = expected.map((level) => `{"time":"${NOON}","level":"${level}","msg":"m"}`);
    assertEquals(text, lines.map((line) => `${line}\n`).join(""));
  }
});

Deno.test("createLogger() escapes every control and format character, and no other", async () => {
  const planes = Array.from({ length: 17 }, (_, plane) => {
    const codes = Array.from({ length: 0x10000 }, (_, n) => plane * 0x10000 + n);
    return codes.filter((code) => code < 0xd800 || code > 0xdfff).map((code) =>
      String.fromCodePoint(code)
    );
  });
  for (const LOG_FORMAT of ["json", "text"] as const) {
    for (const characters of [planes[0]!.slice(0, 128), ...planes]) {
      const decoder = new TextDecoder();
      let line = "";
      const { log } = loggerFor((bytes) => {
        line += decoder.decode(bytes, { stream: true });
        return bytes.length;
      }, { LOG_FORMAT });
      log.write("info", "m", { value: characters.join("") });
      await log.flush(10_000);
      const json = /value"?[:=](".*")}?\n$/s.exec(line)![1]!;
      assert(JSON.parse(json) === characters.join(""), "the value");
      const plain = json.slice(1, -1).replaceAll(/\\u[\da-f]{4}|\\[bfnrt"\\]/g, "");
      const isPlain = (character: string) => !/[\p{Cc}\p{Cf}\u2028\u2029"\\]/u.test(character);
      assert(plain === characters.filter(isPlain).join(""), "the rest stays");
    }
  }
});

Deno.test("createLogger() lets nothing break a line or steer a terminal, in both forms", async () => {
  const hostile =
    "a\r\nb\x1b[2J\x7f\x85\x9b\u2028\u2029\u202e\u2066\u200f\u061c\ufeff\xad\u{e0001}";
  for (const LOG_FORMAT of ["json", "text"] as const) {
    const { log, written } = loggerFor(undefined, { LOG_FORMAT });
    log.write("info", "request", { user_agent: hostile });
    await log.flush(1000);
    assertMatch(written.text, /^[\x20-\x7e]+\n$/);
    if (LOG_FORMAT === "json") assertEquals(JSON.parse(written.text).user_agent, hostile);
  }
});

Deno.test("createLogger() writes whole lines, many at once, soon, and no more than a pipe takes", async () => {
  const writes: number[] = [];
  const latencies: number[] = [];
  let begun = 0;
  const { log, readLines, written } = loggerFor((bytes) => {
    writes.push(bytes.length);
    latencies.push(performance.now() - begun);
    const isLong = written.text.length < 10_000;
    assert(isLong || bytes.at(-1) === 10, "a line is torn");
    return bytes.length;
  });
  log.write("info", "x".repeat(10_000)); // which no pipe takes at once
  for (let n = 1; n < 101; n++) log.write("info", "m", { n });
  await log.flush(1000);
  assertLessOrEqual(Math.max(...writes), 4096);
  assertLess(writes.length, 10, "several lines share a write");
  assertEquals(
    readLines().slice(1).map(({ n }) => n),
    Array.from({ length: 100 }, (_, n) => n + 1),
  );
  latencies.length = 0;
  for (let n = 0; n < 10; n++) {
    begun = performance.now();
    log.write("info", "m");
    await log.flush(1000);
  }
  assertLess(Math.min(...latencies), 60, "the wait for more lines, where the machine was not busy");
});

/** A megabyte of lines, and as much again. */
function fill(log: ReturnType<typeof createLogger>, begin: number, end: number) {
  for (let n = begin; n < end; n++) log.write("info", "x".repeat(500), { n });
}

Deno.test("createLogger() writes more at once where much was taken, but not after a failed write", async () => {
  const sizes: number[] = [];
  let isFull = false;
  const { log, readLines } = loggerFor((bytes) => {
    if (isFull) throw new Deno.errors.WouldBlock();
    sizes.push(bytes.length);
    return bytes.length;
  });
  fill(log, 0, 1000); // some 600 kB
  await log.flush(20_000);
  assertLess(sizes.length, 60, "a busy log would wait for each 4 kB");
  isFull = true;
  fill(log, 1000, 1001);
  await log.flush(50);
  isFull = false;
  sizes.length = 0;
  fill(log, 1001, 2000);
  await log.flush(20_000);
  assertLessOrEqual(Math.max(...sizes), 4096);
  assertEquals(readLines().map(({ n }) => n), Array.from({ length: 2000 }, (_, n) => n));
});

Deno.test("createLogger() drops and counts lines while nobody reads, and says so when somebody does", async () => {
  const reader = Promise.withResolvers<void>();
  const { log, written, readLines } = loggerFor(async (bytes) => {
    await reader.promise;
    return Math.min(bytes.length, 3000); // a pipe may take less than it is offered
  });
  const total = 10_000;
  fill(log, 0, total / 2);
  await log.flush(100); // gives up on a reader that does not read
  assertEquals(written.text, "");
  fill(log, total / 2, total);
  reader.resolve();
  await log.flush(20_000);
  const lines = readLines();
  const notices = lines.filter(({ dropped }) => dropped !== undefined);
  for (const { msg, level } of notices) assertEquals([msg, level], ["log lines dropped", "warn"]);
  const seen = lines.flatMap(({ n }) => n === undefined ? [] : n);
  assertEquals(seen.length + notices.reduce((sum, { dropped }) => sum + dropped, 0), total);
  assertEquals(seen, Array.from(seen, (_, n) => n));
  assertAlmostEquals(written.text.length, QUEUE_BYTES, 2000); // what waits
});

Deno.test("createLogger() loses no line to a reader that is away for a while", async () => {
  let isAway = true;
  let tries = 0;
  const { log, written, readLines } = loggerFor((bytes) => {
    tries++;
    if (isAway) throw new Deno.errors.WouldBlock();
    return bytes.length;
  });
  for (const n of [0, 1]) {
    log.write("info", "m", { n });
    await log.flush(300);
  }
  assertLess(tries, 100, "it spins");
  assertEquals(written.text, "");
  isAway = false;
  log.write("info", "m", { n: 2 });
  await log.flush(20_000);
  assertEquals(readLines().map(({ msg, n }) => [msg, n]), [["m", 0], ["m", 1], ["m", 2]]);
});

Deno.test("createLogger() counts what comes while the queue is full and the reader away", async () => {
  const total = 10_000;
  let isAway = true;
  const { log, written, readLines } = loggerFor((bytes) => {
    if (isAway) throw new Deno.errors.BrokenPipe();
    return bytes.length;
  });
  fill(log, 0, 1);
  await log.flush(100);
  fill(log, 1, total);
  await log.flush(100);
  isAway = false;
  await log.flush(20_000);
  log.write("info", "again", { n: -1 });
  await log.flush(20_000);
  const lines = readLines();
  assertEquals(lines.at(-1).n, -1);
  assertEquals(lines.at(-2).msg, "log lines dropped");
  assertEquals(lines.length - 2 + lines.at(-2).dropped, total);
  assertEquals(lines.slice(0, -2).map(({ n }) => n), Array.from(lines.slice(2), (_, n) => n));
  assertAlmostEquals(written.text.length, QUEUE_BYTES, 2000);
});

Deno.test("createLogger() writes a line once, whatever a write takes or fails of it", async () => {
  const takes = [5, 0, "fail", 1, 100, "fail", 4096, 7, 0, 3] as const; // bytes of each write, then all
  let turn = 0;
  const { log, readLines } = loggerFor((bytes) => {
    const take = takes[turn++] ?? bytes.length;
    if (take === "fail") throw new Deno.errors.WouldBlock();
    return Math.min(take, bytes.length);
  });
  for (let n = 0; n < 100; n++) {
    log.write("info", "x".repeat(n), { n });
    if (n % 10 === 0) await log.flush(20);
  }
  await log.flush(20_000);
  assertEquals(readLines().map(({ n }) => n), Array.from({ length: 100 }, (_, n) => n));
});

// ---- The black box ----

for (const form of FORMS) {
  const test = bindTest(form);

  test("logs start, requests, drain and stop with their fields", async () => {
    await using service = await start(form, { LOG_LEVEL: "debug" });
    await sendRaw(service.port, formatRequest("/?secret", { fields: "User-Agent: a/1\r\n" }));
    await probe(service.port);
    await sendRaw(service.port, formatRequest(OTHER_PATH));
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    assertEquals(
      service.lines.map(({ time, duration_ms, ...rest }) => {
        assertMatch(String(time), RFC_3339);
        if (rest.msg === "request") assertGreaterOrEqual(duration_ms as number, 0);
        return rest;
      }),
      [
        {
          ...{ level: "info", msg: "listening", address: "127.0.0.1", port: service.port },
          version: project.version,
        },
        {
          ...{ level: "info", msg: "request", method: "GET", path: "/", status: 200 },
          ...{ client_ip: "127.0.0.1", user_agent: "a/1" },
        },
        {
          ...{ level: "debug", msg: "request", method: "GET", path: "/health", status: 200 },
          ...{ client_ip: "127.0.0.1", user_agent: "unknown" },
        },
        {
          ...{ level: "info", msg: "request", method: "GET", path: OTHER_PATH, status: 404 },
          ...{ client_ip: "127.0.0.1", user_agent: "unknown" },
        },
        { level: "info", msg: "draining", signal: "SIGTERM", seconds: 0 },
        { level: "info", msg: "stopped" },
      ],
    );
    assertEquals(service.stderr, "");
  });

  test("LOG_LEVEL says what is logged; probes are not, by default", async () => {
    await using service = await start(form);
    await probe(service.port);
    await sendRaw(service.port, formatRequest(OTHER_PATH));
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    assertEquals(service.lines.map(({ path }) => path).filter(Boolean), [OTHER_PATH]);

    const port = findFreePort();
    await using quiet = await launch(form, {
      HOST: "127.0.0.1",
      PORT: String(port),
      LOG_LEVEL: "warn",
    });
    await waitUntil("the port to open", async () => !await isRefused(port));
    await sendRaw(port, formatRequest(OTHER_PATH));
    quiet.kill("SIGTERM");
    assertEquals([await quiet.waitForCode(), quiet.stdout], [0, ""]);
  });

  test("LOG_FORMAT=text has the same fields; no client can forge a line", async () => {
    for (const LOG_FORMAT of ["text", "json"]) {
      await using service = await start(form, { LOG_FORMAT });
      const forged = `x" level=error\x85{"level":"error"}\x9b2J`;
      await sendRaw(
        service.port,
        formatRequest("/a%0ab%1b", { fields: `User-Agent: ${forged}\r\n` }),
      );
      service.kill("SIGTERM");
      assertEquals(await service.waitForCode(), 0);
      const lines = service.stdout.trimEnd().split("\n");
      assertEquals(lines.length, 4);
      for (const line of lines) assertMatch(line, /^[\x20-\x7e]+$/);
      if (LOG_FORMAT === "text") {
        assertMatch(
          lines[1]!,
          /^\d{4}-\S+Z INFO {2}request method=GET path="?\/a%0ab%1b"? status=404 duration_ms=[\d.]+ client_ip=127\.0\.0\.1 user_agent="x\\" level=error\\u0085{\\"level\\":\\"error\\"}\\u009b2J"$/,
        );
      } else assertEquals(service.lines[1]!.user_agent, forged);
    }
  });

  test("what is logged before the end is written before the end", async () => {
    await using service = await start(form);
    const count = 300;
    using connection = await connect(service.port);
    await connection.send(formatRequest("/").repeat(count));
    for (let n = 0; n < count; n++) assertEquals((await connection.receive())?.status, 200);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    assertEquals(service.lines.filter(({ msg }) => msg === "request").length, count);
    assertEquals(service.lines.at(-1)!.msg, "stopped");
  });

  const lacksTerminal = [
    form.isImage && "needs a terminal inside of the container",
    lacks("script"),
  ];
  // beside another Deno, Deno may first warn of its cache
  test("on a terminal it logs text", async () => {
    await using service = await start(inTerminal(form));
    assertMatch(service.stdout, /^\S+Z INFO {2}listening address=127.0.0.1 port=\d+ version=/m);
  }, ...lacksTerminal);

  test("on a terminal that is standard error alone it logs JSON", async () => {
    await using service = await start(inTerminal(form, "| cat"));
    assertMatch(service.stdout, /^{"time":.*"listening"/m);
  }, ...lacksTerminal);
}
