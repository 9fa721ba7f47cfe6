/** The proof of `reliability.md`, part by part. */
import { assert, assertEquals, assertLess, assertMatch, assertNotMatch } from "@std/assert";
import { type Form, FORMS, IS_FULL, SOURCE, wrapForm } from "../.test/forms.ts";
import { isFile, lacks, makeTempPath } from "../.test/programs.ts";
import { readOutput, readText, runProgram } from "../.test/programs.ts";
import {
  connect,
  findFreePort,
  formatFrame,
  formatHeaders,
  formatRequest,
  formatReset,
  HTTP2_PREFACE,
  probe,
  sendRaw,
} from "../.test/requests.ts";
import {
  bindSpec,
  launch,
  readResources,
  type RunningService,
  share,
  SIGNAL_PAUSE,
  start,
  startHaproxy,
} from "../.test/run.ts";
import { repeatUntil, sleep, waitFor, waitUntil } from "../.test/waiting.ts";

const PROBE_LIMIT = 2000; // milliseconds, after which a probe gives up
const MAX_MEGABYTES = Number(/mem_limit: (\d+)m/.exec(readText("docs/deploy/compose.yaml"))![1]);
const lacksProc = Deno.build.os !== "linux" && "needs /proc";

/** Asks for the health and gives the milliseconds that it took. */
async function timeProbe(port: number): Promise<number> {
  const begun = performance.now();
  assertEquals((await probe(port)).status, 200);
  return performance.now() - begun;
}

/** Stops a service, which must be in order, and gives its messages. */
async function stop(service: RunningService) {
  service.kill("SIGTERM");
  assertEquals(await service.waitForCode(), 0);
  return service.lines.map(({ msg }) => msg);
}

// ---- Hostile requests ----

const CHUNKED = "Transfer-Encoding: chunked\r\n";
const LENGTH = "Content-Length: 5\r\n";
const H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ";
const ask = (target: string) => formatRequest(target);
const get = (fields: string) => formatRequest("/", { fields: `${fields}\r\n` });
const post = (fields: string, body = "") => formatRequest("/", { method: "POST", fields, body });
const withHost = (host: string) => formatRequest("/health", { host: `Host: ${host}\r\n` });

/** Raw requests, by what must come of them; several things where Deno's releases differ. */
const HOSTILE = {
  "400": [
    ...["GET /\r\n\r\n", "GET / HTTP/1.1\rHost: x\r\r", "\x16\x03\x01\x02\0\x01\0\x01\xfc"],
    "GET /health\r\n", // HTTP/0.9
    ...["GET  / HTTP/1.1", " GET / HTTP/1.1", "GET\t/\tHTTP/1.1"].map((line) => `${line}\r\n\r\n`),
    ...["HTTP/2.0", "HTTP/9.9", "http/1.1"].map((version) => formatRequest("/", { version })),
    ...["", "G(T", "CONNECT"].map((method) => formatRequest("/", { method })),
    ...["/\0", "x:80", "*", "%2fhealth", "\\health"].map(ask),
    formatRequest("*?x", { method: "OPTIONS" }),
    formatRequest("http://x/health", { host: "Host: a b\r\n" }),
    ...["x/health?", "x/?", "u@x", "[::1", "\xff", ""].map(withHost),
    ...["X: a\0b", "X\0: a", "X: a\x01b", "X : a", "X", "X: a\r\n b", "Host: x", "Host: y"].map(
      get,
    ),
    ...["-1", "0x2", "1, 2", "9".repeat(30)].map((n) => get(`Content-Length: ${n}\r\n\r\nab`)),
    ...["Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", "Transfer-Encoding: gzip"].map(get),
    formatRequest("/", { version: "HTTP/1.0", fields: CHUNKED, body: "0\r\n\r\n" }),
  ],
  "404": [
    ...["//health", "/./health", "/%2e%2e/health", "/%2fhealth", "/health%00", "/health;x"],
    ...["/\\health", "/\xc3\xa9", "/" + "a".repeat(10_000)],
  ].map(ask),
  "405": [
    ...["BREW", "TRACE"].map((method) => formatRequest("/", { method })),
    formatRequest("x:80", { method: "CONNECT" }),
    post(`Expect: 100-continue\r\n${LENGTH}`),
    post(`Content-Length: ${1e9}\r\n`, "x".repeat(1e6)), // has no end
    post(CHUNKED, "4\r\nxxxx\r\n".repeat(10_000)),
  ],
  "200 /": [
    ...["http://x", "http://x?/health"].map(ask),
    ...["User-Agent: \xe9", "X-Forwarded-For: \xc3\xa9", 'User-Agent: "}{"\x85{"x":"'].map(get),
  ],
  "200 /health": [
    // RFC 9112, 2.2 lets us take these
    ...["\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n", "GET /health HTTP/1.1\nHost: x\n\n"],
    // whether HTTP/1.1 needs a Host is not ours to see
    ...["HTTP/1.1", "HTTP/1.0"].map((version) => formatRequest("/health", { version, host: "" })),
    "GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ...["http://x/health", "http://y:81/health?q", "http://u:p@x/health", "/health#x"].map(ask),
    ...["[::1]:5000", "x\r\nExpect: x", `x\r\n${H2C}`].map(withHost),
    formatRequest("/health", { fields: LENGTH, body: "hello" }),
  ],
  "204": [formatRequest("*", { method: "OPTIONS" })],
  "HTTP/2": [HTTP2_PREFACE],
  "200 / or 400": [ask("http://x:5#0/health"), get(`X: ${"a".repeat(1e5)}`)],
  "400 or 414 or 431 or closed": [
    ...[7e4, 1e6].map((length) => ask("/" + "a".repeat(length))),
    ...["X: a\r\n".repeat(200), "X: a\r\n".repeat(5000), `X: ${"a".repeat(1e6)}`].map(get),
  ],
  "400 or 405": [post(LENGTH + CHUNKED, "0\r\n\r\n")], // RFC 9112, 6.3 lets us do either
  "405 or closed": [post(CHUNKED, "-1\r\n")],
  "200 /health or closed": [formatRequest("/health", { fields: CHUNKED, body: "zz\r\nab\r\n" })],
};

/** What comes of a request: a status, after 200 whose answer it is, or that it closes. */
async function findOutcome(port: number, text: string, thenClose = false): Promise<string> {
  using connection = await connect(port);
  const sending = connection.send(text)
    .then(() => thenClose ? connection.closeWrite() : undefined)
    .catch(() => {}); // the other end may have had enough
  let outcome = "";
  while (outcome === "") {
    const answer = connection.take();
    if (connection.received.startsWith("\0")) outcome = "HTTP/2";
    else if (answer?.body.includes('"endpoints"')) outcome = "200 /";
    else if (answer?.body.includes('"healthy"')) outcome = "200 /health";
    else if (answer && answer.status !== 100) outcome = String(answer.status);
    else if (!answer && !await connection.read(show(text))) outcome = "closed";
  }
  connection.close();
  await sending;
  return outcome;
}

const show = (text: string) => JSON.stringify(text.slice(0, 500));

const TOKENS = [
  ..."\0\r\n \t:/?#@%\\*[]\xff",
  ...["\r\n", "//", "/health", "HTTP/1.1", "-1", "99999999999999999999", "a".repeat(9000)],
  ...["Host: y\r\n", LENGTH, CHUNKED, "Connection: close\r\n", "Expect: x\r\n"],
];

/** Requests that are changed at random. The seed says all. */
function* makeMutants(seed: number): Generator<string> {
  const below = (limit: number) => {
    seed = Math.imul(seed, 1664525) + 1013904223 >>> 0; // Knuth's generator
    return Math.floor(seed / 2 ** 32 * limit);
  };
  const pick = <T>(items: readonly T[]): T => items[below(items.length)]!;
  const texts = Object.values(HOSTILE).flat().filter((text) => text.length < 300);
  while (true) {
    let text = pick(texts);
    for (let times = below(4); times >= 0; times--) {
      const at = below(text.length + 1);
      const cut = text.slice(at, at + below(pick([1, 2, 9, 20, 300])));
      const put = pick([pick(TOKENS), pick(TOKENS), cut + cut, ""]);
      text = text.slice(0, at) + put + text.slice(at + cut.length);
    }
    yield text;
  }
}

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  Deno.test(formSpec("hostile requests get their status, and the next its answer", async () => {
    await using service = await start(form, { LOG_LEVEL: "debug", TRUST_PROXY: "1" });
    const wrong: string[] = [];
    for (const [expected, texts] of Object.entries(HOSTILE)) {
      for (const text of texts) {
        const found = await findOutcome(service.port, text);
        const isRight = expected.split(" or ").includes(found);
        if (!isRight) wrong.push(`${found} instead of ${expected} for ${show(text)}`);
        assertEquals((await probe(service.port)).status, 200, `after ${show(text)}`);
      }
    }
    assertEquals(wrong, []);
    const others = (await stop(service)).filter((message) => message !== "request");
    assertEquals(others, ["listening", "draining", "stopped"]); // none is forged
    assertNotMatch(service.stdout, /^.{40,50}"level":"error"/m);
  }));

  Deno.test(formSpec("mutated requests: no 5xx, no other route's answer, no hang", async () => {
    const seed = Number(Deno.env.get("FUZZ_SEED") || Date.now() % 2 ** 32);
    const count = Number(Deno.env.get("FUZZ_COUNT") || (IS_FULL ? 10_000 : 3000));
    console.log(`FUZZ_SEED=${seed} FUZZ_COUNT=${count}`);
    const mutants = makeMutants(seed).take(count);
    await using service = await start(form, { LOG_LEVEL: "debug", TRUST_PROXY: "1" });
    const work = async () => {
      for (const text of mutants) {
        const found = await findOutcome(service.port, text, true);
        const about = `${found} for ${show(text)}`;
        assertMatch(found, /^([234]\d\d( .*)?|closed|HTTP\/2)$/, about);
        const targets = text.matchAll(/^\S+ (?:[^:/ ]*:\/\/[^/?# ]*)?(\S*?)([?#]\S*)? HTTP\//gm);
        const paths = Array.from(targets, ([, path]) => `200 ${path || "/"}`);
        if (found.startsWith("200 ")) assert(paths.includes(found), about);
      }
    };
    await Promise.all(Array.from(Array(16), work));
    await stop(service);
    assertNotMatch(service.stdout, /^.{40,50}"level":"error"/m);
  }));
}

// ---- Long fields ----

const formatAgent = (text: string, size: number) =>
  get(`Accept: text/html\r\nUser-Agent: ${text.repeat(size / text.length)}`);

/** What is costly to show on the page or to log. */
const COSTLY = { "< and &": "<&", "control characters": "\x80" };

/** Clients, half of them on a new connection each time, send a request over and over. */
async function attack(port: number, text: string, clients: number): Promise<number> {
  const end = Date.now() + (IS_FULL ? 2000 : 300);
  let isRunning = true;
  const work = async (_: unknown, n: number) => {
    while (isRunning) {
      using connection = await connect(port);
      do {
        const [answer] = await Promise.all([connection.receive(), connection.send(text)]);
        assert(answer, "no answer");
      } while (n % 2 === 0 && isRunning);
    }
  };
  const times: number[] = [];
  const watch = async () => {
    while (times.length < 2 || Date.now() < end) times.push(await timeProbe(port));
  };
  const watching = watch().finally(() => isRunning = false);
  await Promise.all([watching, ...Array.from(Array(clients), work)]);
  const slowest = Math.max(...times);
  console.log(`${clients} clients, ${text.length} bytes, slowest probe: ${slowest | 0} ms`);
  return slowest;
}

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  Deno.test(formSpec("long fields starve no probe", async (context) => {
    await using service = await start(form, {}, { memory: `${MAX_MEGABYTES}m` });
    const long = await sendRaw(service.port, formatAgent("a", 380_000)).catch(() => undefined);
    const [size, clients] = IS_FULL && long?.status === 200 ? [380_000, 32] : [60_000, 128];
    for (const [name, text] of Object.entries(COSTLY)) {
      await context.step(name, async () => {
        const trial = () => attack(service.port, formatAgent(text, size), clients);
        assertLess(await repeatUntil((time) => time < PROBE_LIMIT, trial), PROBE_LIMIT);
      });
    }
  }));
}

// ---- Slow, silent and too many clients ----

/** A whole request of HTTP/2. */
function formatStream(stream: number, fields = {}): string {
  const target = { ":method": "GET", ":scheme": "http", ":authority": "x", ":path": "/" };
  return formatHeaders(stream, Object.entries({ ...target, ...fields }));
}

const HALF = "GET / HTTP/1.1\r\nHost: x\r\nX-Half: ";
const WITHOUT_WINDOW = HTTP2_PREFACE + formatFrame(4, 0, 0, "\0\x04\0\0\0\0") +
  Array.from(Array(200), (_, n) => formatStream(2 * n + 1, { accept: "text/html" })).join("");

/** What clients send that never read; how many, and at once; how often; the most megabytes. */
const FLOODS = [
  ["half requests", HALF, 5000, 200, 5, MAX_MEGABYTES],
  // more than the kernel keeps, so that the service itself is stuck with them
  ["unread answers", get("Accept: text/html").repeat(30), 1000, 50, 1, MAX_MEGABYTES],
  ["unread pages of <", formatAgent("<", 60_000), 1000, 200, 1, MAX_MEGABYTES],
  ["resets", formatRequest("/"), 200, 40, 10, MAX_MEGABYTES],
  // what only Deno can fix
  ["half requests of 60 kB", HALF + "a".repeat(60_000), 5000, 200, 1, 1024],
  ["connections of 200 streams without a window", WITHOUT_WINDOW, 300, 5, 1, 1024],
] as const;

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  Deno.test(formSpec("a beginning of a request waits for the rest, byte by byte", async () => {
    const { port } = await share(form);
    const cut = async (text: string, length: number) => {
      using connection = await connect(port);
      await connection.send(text.slice(0, length));
      const answer = connection.receive();
      const early = await Promise.race([answer, sleep(500)]);
      assertEquals(early, undefined, show(text.slice(0, length)));
      for (const byte of text.slice(length)) await connection.send(byte);
      assertEquals((await answer)?.status, 200, show(text));
    };
    // cut at each byte they cover uNetworking/h1spec
    const texts = HOSTILE["200 /health"].filter((text) => /^[^]{9,70}\n$/.test(text)); // no body
    await Promise.all(texts.flatMap((text) => Array.from(text, (_, length) => cut(text, length))));
  }));

  Deno.test(formSpec("slow heads, bodies and readers, 1,000 of each", async () => {
    await using service = await start(form, {}, { memory: "512m" });
    const common = `-c 1000 -r 500 -i 2 -l 5 -p 3 -u ${service.url}/`;
    await Promise.all(["-H", "-B -t POST", "-X -w 10 -y 20 -n 5 -z 32 -k 3"].map(async (kind) => {
      const report = await readOutput(`slowhttptest ${kind} ${common}`.split(" "));
      assertNotMatch(report, /service available:\S*\s+\S*NO/, kind);
    }));
  }, !IS_FULL && "with FULL=1" || lacks("slowhttptest")));

  for (const [name, text, many, size, waves, most] of FLOODS) {
    const clients = IS_FULL ? many : many / 5;
    const isDeno = most > MAX_MEGABYTES; // to mend, so it is proved once
    const reason = lacksProc || isDeno && !(IS_FULL && form === SOURCE) && "from source, FULL=1";
    const flood = async () => {
      await using service = await start(form, {}, { memory: `${most}m` });
      const { descriptors: before, megabytes } = await readResources(service);
      const peaks: number[] = [];
      let slowest = 0;
      for (let wave = 0; wave < waves; wave++) {
        using stack = new DisposableStack();
        for (let n = 0; n < clients; n += size) {
          const group = await Promise.all(Array.from(Array(size), () => connect(service.port)));
          const sending = Promise.all(group.map((client) => stack.use(client).send(text)));
          slowest = Math.max(slowest, await timeProbe(service.port));
          await sending;
        }
        peaks.push((await readResources(service)).megabytes);
        stack.dispose();
        const isFreed = async () => (await readResources(service)).descriptors < before + 5;
        await waitUntil("descriptors to come back", isFreed);
      }
      console.log(`${megabytes} → ${peaks.join(", ")} MB, slowest probe: ${slowest | 0} ms`);
      assertLess(Math.max(...peaks), most);
      // the C library keeps what was freed for the next wave, which then needs no more
      if (waves > 1) assertLess(peaks.at(-1)!, peaks.at(-2)! * 1.1);
      return slowest;
    };
    Deno.test(formSpec(`${clients} ${name}: probes answer, memory is bounded`, async () => {
      assertLess(await repeatUntil((time) => time < PROBE_LIMIT, flood), PROBE_LIMIT);
    }, reason));
  }

  Deno.test(formSpec("a stop cuts off a client of HTTP/2 that answers no PING", async () => {
    await using service = await start(form, { SHUTDOWN_SECONDS: "1" });
    using connection = await connect(service.port);
    await connection.send(HTTP2_PREFACE);
    await connection.read();
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 1);
  }));
}

// ---- Out of descriptors ----

const [AWAY, BACK] = ["cannot accept connections", "accepting connections again"];

/** Lets time pass, in which the service must neither spin nor write. */
async function watchIdle(service: RunningService) {
  const pid = await service.readPid();
  const readTicks = () => Number(Deno.readTextFileSync(`/proc/${pid}/stat`).split(" ")[13]);
  const [begun, lines] = [readTicks(), service.lines.length];
  await sleep(500);
  assertLess(readTicks() - begun, 10, "it spins"); // hundredths of a second
  assertEquals(service.lines.length, lines, "it logs in a loop");
}

const setDescriptors = async (service: RunningService, most: number) =>
  await readOutput(["prlimit", "--pid", String(await service.readPid()), `--nofile=${most}:`]);

/** Lets the descriptors run out, by one client too many. */
async function exhaust(service: RunningService) {
  await probe(service.port); // so that it holds more than the limit allows
  await setDescriptors(service, 5);
  await connect(service.port).then((client) => client.close(), () => {});
  await waitUntil("the listener to go", () => service.lines.at(-1)!.msg === AWAY);
}

const tracing = await runProgram(["sh", "-c", "strace -o /dev/null true"]);
const lacksTrace = tracing.code !== 0 && "strace is not there, or may not trace";

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  const reason = form.isImage ? "a container's limits stay" : lacksProc || lacks("prlimit");
  Deno.test(formSpec("too many clients are served who are in, and others later", async () => {
    await using service = await start(form, {}, { descriptors: 64 });
    const opening = Array.from(Array(100), () => connect(service.port).catch(() => undefined));
    const clients = await Promise.all(opening);
    await clients[0]!.send(ask("/health"));
    assertEquals((await clients[0]!.receive())?.status, 200);
    for (const client of clients) client?.close();
    await service.waitForOutput(RegExp(BACK));
    assertEquals((await probe(service.port)).status, 200);
  }));

  Deno.test(formSpec("that its listener is away, and back, is said once", async () => {
    await using service = await start(form);
    await exhaust(service);
    await watchIdle(service);
    await setDescriptors(service, 1024);
    await service.waitForOutput(RegExp(BACK));
    await watchIdle(service);
    await exhaust(service); // a second time, and a stop meanwhile
    assertEquals(await stop(service), ["listening", AWAY, BACK, AWAY, "draining", "stopped"]);
    assertEquals(service.lines.slice(1, 3).map(({ level }) => level), ["error", "info"]);
    assertMatch(String(service.lines[1]!.error), /os error (23|24)\b/);
  }, reason));

  Deno.test(formSpec("a port that is taken meanwhile: one line, and exit 1", async () => {
    await using service = await start(form);
    await exhaust(service);
    const address = { hostname: "127.0.0.1", port: service.port };
    const take = () => Promise.try(() => Deno.listen(address)).catch(() => undefined);
    using _taker = await waitUntil("a moment in which it does not try the port", take);
    await setDescriptors(service, 1024);
    assertEquals(await service.waitForCode(), 1);
    assertMatch(service.stderr, /^cannot listen on 127\.0\.0\.1 port \d+: .*in use.*\n$/);
  }, reason));

  Deno.test(formSpec("descriptors of the whole machine may run out as well", async () => {
    // the kernel refuses a connection, then the port three times, then a connection again
    const faults = "-e inject=accept4:error=ENFILE:when=2..3 -e inject=bind:error=ENFILE:when=2..4";
    const strace = `strace -Dfqq -o /dev/null -e trace=accept4,bind ${faults}`.split(" ");
    await using service = await start(wrapForm(form, (command) => [...strace, ...command]));
    await probe(service.port).catch(() => {});
    await service.waitForOutput(RegExp(AWAY));
    await waitUntil("an answer", () => probe(service.port).catch(() => undefined));
    await service.waitForOutput(RegExp(BACK));
    assertEquals(service.lines.map(({ msg }) => msg), ["listening", AWAY, BACK]);
    const times = service.lines.map(({ time }) => Date.parse(String(time)));
    const milliseconds = times[2]! - times[1]!; // for five tries, five of them a second
    assert(milliseconds > 800 && milliseconds < 4000, `${milliseconds} ms`);
  }, form.isImage ? "strace is not inside the container" : lacksTrace));
}

// ---- Standard output and standard error that nobody reads ----

/** Sends requests on one connection, and a probe. Each makes a line of 1.2 kB in the log. */
async function sendBatch({ port }: RunningService, count: number) {
  using connection = await connect(port);
  const text = get(`User-Agent: ${"a".repeat(1000)}`).repeat(count);
  const sending = connection.send(text + "GET /health HTTP/1.0\r\n\r\n");
  const [answers] = await Promise.all([connection.receiveAll(), sending]);
  assertEquals(answers.split(" 200 OK\r\n").length - 1, count + 1);
}

/** The form with a setting of a file descriptor, by the system's call. */
function setUp(form: Form, setting: string): Form {
  const perl = ["perl", "-MFcntl", "-e", `fcntl(${setting}) or die; exec @ARGV`];
  return wrapForm(form, (command) => [...perl, ...command]);
}

/** The form with a full pipe, which nobody reads, in place of a file descriptor. */
function fillPipe(form: Form, descriptor: number): Form {
  const pipe = makeTempPath("pipe");
  const script = `mkfifo $0; exec 3<>$0; head -c 65536 /dev/zero >&3; exec "$@" ${descriptor}>&3`;
  return wrapForm(form, (command) => ["sh", "-c", script, pipe, ...command]);
}

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  const readByDocker = form.isImage && "Docker reads its standard output, whoever else does";
  Deno.test(formSpec("lines wait for a reader; above 1 MB they are lost, and counted", async () => {
    const nonBlocking = setUp(form, "STDOUT, F_SETFL, O_WRONLY | O_NONBLOCK");
    const cases = [form, nonBlocking].flatMap((pipe) => [400, 1300].map((n) => [pipe, n] as const));
    await Promise.all(cases.map(async ([pipe, count]) => {
      await using service = await start(pipe);
      service.pause();
      await sendBatch(service, count);
      await sleep(500); // the time to fill the pipe; one that fills late may get lines twice
      service.resume();
      const isTooMuch = count > 1000;
      await service.waitForOutput(isTooMuch ? /log lines dropped/ : /"msg":"request"/);
      const seen = (await stop(service)).filter((message) => message === "request").length;
      const dropped = service.lines.reduce((sum, { dropped }) => sum + Number(dropped ?? 0), 0);
      assertEquals([seen + dropped, dropped > 0], [count, isTooMuch]);
    }));
  }, readByDocker || lacks("perl")));

  Deno.test(formSpec("a reader that hangs or leaves delays no end", async () => {
    const end = async (go: "pause" | "abandon", isForced: boolean) => {
      await using service = await start(form, { DRAIN_SECONDS: isForced ? "300" : "0" });
      await service[go]();
      await sendBatch(service, 300);
      service.kill("SIGTERM");
      if (isForced) await sleep(SIGNAL_PAUSE);
      const begun = performance.now();
      if (isForced) service.kill("SIGINT");
      assertMatch(String(await service.waitForCode()), isForced ? /^(130|143)$/ : /^0$/);
      return performance.now() - begun;
    };
    for (const isForced of [false, true]) {
      const most = isForced ? 1000 : 2500; // the log waits a tenth of a second, or a second
      const trial = () => Promise.all([end("pause", isForced), end("abandon", isForced)]);
      assertLess(Math.max(...await repeatUntil((times) => Math.max(...times) < most, trial)), most);
    }
  }, readByDocker));

  Deno.test(formSpec("a second signal decides the code while a cut stop's log waits", async () => {
    // where the machine is busy, the service may have ended before the second signal
    const code = await repeatUntil((code) => code === 143, async () => {
      await using service = await start(form, { SHUTDOWN_SECONDS: "0" });
      using head = await connect(service.port);
      await head.send(HALF); // 2.7.11 waits for the rest
      using body = await connect(service.port);
      await body.send(post(LENGTH)); // as does 2.9.6
      service.pause();
      await sendBatch(service, 300);
      service.kill("SIGTERM");
      await sleep(930); // of the second that the log waits
      service.kill("SIGTERM");
      return await service.waitForCode();
    });
    assertEquals(code, 143);
  }, readByDocker));

  Deno.test(formSpec("a full pipe delays no message by more than a second", async () => {
    const { port } = await share(form);
    const env = { HOST: "127.0.0.1", PORT: String(port) };
    const cases = [[2, [], 1], [2, ["bad"], 2], [1, ["--help"], 0], [1, ["--health"], 0]] as const;
    await Promise.all(cases.map(async ([descriptor, args, code]) => {
      await using run = await launch(fillPipe(form, descriptor), env, args);
      assertEquals(await waitFor(run.waitForCode(), `the end of ${args}`, 8), code);
    }));
  }, readByDocker));

  Deno.test(formSpec("resets of HTTP/2 leave standard error empty", async () => {
    const small = form.isImage ? form : setUp(form, "STDERR, 1031, 4096"); // F_SETPIPE_SZ
    await using service = await start(small, {}, { memory: "512m" });
    service.pause();
    const reset = (_: unknown, n: number) => formatStream(2 * n + 1) + formatReset(2 * n + 1);
    const text = HTTP2_PREFACE + Array.from(Array(100), reset).join("");
    for (let n = 0; n < (IS_FULL ? 1000 : 300); n++) { // a hundred would fill the pipe
      using client = await connect(service.port);
      await client.send(text).catch(() => {}); // it may have had enough
      if (n % 30 === 0) await timeProbe(service.port);
    }
    service.resume();
    await stop(service);
    assertEquals(service.stderr, "");
  }, lacksProc || !form.isImage && lacks("perl")));
}

// ---- Nothing lost in a rolling update ----

/** Replaces three instances behind HAProxy in turn, while six clients ask. */
async function updateInTurn(form: Form, signal: "SIGTERM" | "SIGKILL") {
  await using stack = new AsyncDisposableStack();
  const startInstance = async (port = 0) =>
    stack.use(await start(form, { PORT: String(port), DRAIN_SECONDS: "2", LOG_LEVEL: "debug" }));
  const instances = await Promise.all(Array.from(Array(3), () => startInstance()));
  const frontend = findFreePort();
  const sections = `listen web
  bind 127.0.0.1:${frontend}
  option httpchk GET /health
  default-server check inter 250ms fall 2 rise 1
${instances.map(({ port }) => `  server s${port} 127.0.0.1:${port}`).join("\n")}
`;
  stack.use(await startHaproxy(sections));
  const waitForProbe = (run: RunningService) => run.waitForOutput(/"path":"\/health"/);
  const askKept = () => fetch(`http://127.0.0.1:${frontend}`).then((answer) => answer.text());
  const askOnce = () => sendRaw(frontend, get("Connection: close")).then(({ body }) => body);
  const answers: string[] = [];
  let isRunning = true;
  const load = async (_: unknown, n: number) => {
    while (isRunning) answers.push(await (n % 2 ? askKept() : askOnce()).catch(String));
  };
  await Promise.all(instances.map(waitForProbe));
  stack.defer(() => void (isRunning = false));
  const clients = Array.from(Array(6), load);
  for (let turn = 0; turn < (IS_FULL ? 3 : 1); turn++) {
    const old = instances[turn]!;
    await (signal === "SIGTERM" ? stop(old) : old.destroy("SIGKILL"));
    await waitForProbe(await startInstance(old.port));
  }
  isRunning = false;
  await Promise.all(clients);
  const failures = answers.filter((answer) => !answer.includes('"endpoints"'));
  console.log(`${signal}: ${failures.length} of ${answers.length} requests failed`);
  return failures;
}

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  Deno.test(formSpec("SIGTERM loses no request behind HAProxy", async () => {
    assertEquals(await updateInTurn(form, "SIGTERM"), []);
    assertLess(0, (await updateInTurn(form, "SIGKILL")).length, "a kill is noticed");
  }, lacks("haproxy")));
}

// ---- Long runs and odd clocks ----

const SOAK = Number(Deno.env.get("SOAK") || 0);
const FAKETIME = `/usr/lib/${Deno.build.arch}-linux-gnu/faketime/libfaketime.so.1`;

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  Deno.test(formSpec("uptime grows while the clock jumps a day back and forth", async () => {
    const file = makeTempPath("time");
    await using service = await start(form, {
      LD_PRELOAD: FAKETIME,
      FAKETIME_TIMESTAMP_FILE: file,
      FAKETIME_NO_CACHE: "1",
      FAKETIME_DONT_FAKE_MONOTONIC: "1",
    });
    let last = 0;
    const readDate = async () => {
      const { timestamp, uptime_seconds } = JSON.parse((await probe(service.port)).body);
      assert(uptime_seconds >= last && uptime_seconds < 60, `${last}, then ${uptime_seconds} s`);
      last = uptime_seconds;
      return timestamp.slice(0, 10);
    };
    for (const date of ["2026-01-05", "2026-01-04", "2026-01-06", "2026-01-05"]) {
      Deno.writeTextFileSync(file, `${date} 12:00:00`);
      await waitUntil(date, readDate, (seen) => seen === date);
    }
  }, form.isImage ? "its clock stays" : !isFile(FAKETIME) && "libfaketime is not installed"));

  Deno.test(formSpec("a soak leaves memory as it was", async () => {
    await using service = await start(form, {}, { memory: `${MAX_MEGABYTES}m` });
    const seen: number[] = [];
    let requests = 0;
    while (requests < SOAK) {
      const report = await readOutput(["wrk", "-t1", "-c32", "-d2s", service.url]);
      assertNotMatch(report, /Non-2xx|Socket errors/);
      requests += Number(/(\d+) requests in/.exec(report)![1]);
      seen.push((await readResources(service)).megabytes);
    }
    console.log(`${requests} requests: ${seen.join(", ")} MB`);
    // it levels off after 100,000 requests, and may fall
    assertLess(seen.at(-1)!, seen[seen.length / 3 | 0]! * 1.1);
  }, lacksProc || !SOAK && "SOAK does not say how many requests" || lacks("wrk")));
}
