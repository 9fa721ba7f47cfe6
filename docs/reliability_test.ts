/** The proof of `reliability.md`: what one can break around the service, and what then happens. */
import {
  assert,
  assertEquals,
  assertGreater,
  assertGreaterOrEqual,
  assertLess,
  assertLessOrEqual,
  assertMatch,
  assertNotMatch,
} from "@std/assert";
import {
  type Answer,
  bindTest,
  connect,
  findFreePort,
  type Form,
  formatRequest,
  FORMS,
  IS_FULL,
  isFile,
  lacks,
  lacksDescriptors,
  launch,
  type Limits,
  makeProcessForm,
  makeTempPath,
  OTHER_PATH,
  probe,
  readOutput,
  readResources,
  repeatUntil,
  type Run,
  sendRaw,
  start,
  waitUntil,
} from "../.ci/harness.ts";

const lacksProc = Deno.build.os !== "linux" && "needs /proc";

// ---- Hostile requests ----

const CHUNKED = "Transfer-Encoding: chunked\r\n";
const TOO_MUCH = ["400", "414", "431", "closed"];
const UPGRADE =
  "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";

/** Raw requests, and what may come of each: one thing, or several where Deno's releases differ. */
const HOSTILE: [string, string, ...string[]][] = [
  ["no version", "GET /\r\n\r\n", "400"],
  ["HTTP/0.9", "GET /health\r\n", "400"],
  ["HTTP/2.0 in a text", formatRequest("/", { version: "HTTP/2.0" }), "400"],
  ["unknown version", formatRequest("/", { version: "HTTP/9.9" }), "400"],
  ["lower-case version", formatRequest("/", { version: "http/1.1" }), "400"],
  ["two spaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", "400"],
  ["tabs", "GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n", "400"],
  ["leading space", ` ${formatRequest("/")}`, "400"],
  ["empty method", formatRequest("/", { method: "" }), "400"],
  ["method with a delimiter", formatRequest("/", { method: "G(T" }), "400"],
  ["unknown method", formatRequest("/", { method: "BREW" }), "405"],
  ["empty line first", `\r\n${formatRequest("/health")}`, "200 /health"],
  ["bare LF", "GET /health HTTP/1.1\nHost: x\n\n", "200 /health"], // RFC 9112, 2.2 lets us
  ["bare CR", "GET / HTTP/1.1\rHost: x\r\r", "400"],
  ["TLS", "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".repeat(20), "400"],
  ["NUL in target", formatRequest("/\0"), "400"],
  ["NUL in value", formatRequest("/", { fields: "X: a\0b\r\n" }), "400"],
  ["NUL in name", formatRequest("/", { fields: "X\0: a\r\n" }), "400"],
  ["control character in value", formatRequest("/", { fields: "X: a\x01b\r\n" }), "400"],
  ["space before colon", formatRequest("/", { fields: "X : a\r\n" }), "400"],
  ["no colon", formatRequest("/", { fields: "X\r\n" }), "400"],
  ["folded line", formatRequest("/", { fields: "X: a\r\n b\r\n" }), "400"],
  [
    "field of 100 kB",
    formatRequest("/", { fields: `X: ${"a".repeat(100_000)}\r\n` }),
    "200 /",
    ...TOO_MUCH,
  ],
  ["field of 1 MB", formatRequest("/", { fields: `X: ${"a".repeat(1_000_000)}\r\n` }), ...TOO_MUCH],
  ["200 fields", formatRequest("/", { fields: "X: a\r\n".repeat(200) }), ...TOO_MUCH],
  ["5,000 fields", formatRequest("/", { fields: "X: a\r\n".repeat(5000) }), ...TOO_MUCH],
  ["target of 10 kB", formatRequest(`/${"a".repeat(10_000)}`), "404"],
  ["target of 70 kB", formatRequest(`/${"a".repeat(70_000)}`), ...TOO_MUCH],
  ["target of 1 MB", formatRequest(`/${"a".repeat(1_000_000)}`), ...TOO_MUCH],
  ["absolute form", formatRequest("http://x/health"), "200 /health"],
  ["absolute form of another host", formatRequest("http://other:81/health?q"), "200 /health"],
  ["absolute form without a path", formatRequest("http://x"), "200 /"],
  ["absolute form with a query alone", formatRequest("http://x?/health"), "200 /"],
  ["absolute form with userinfo", formatRequest("http://u:p@x/health"), "200 /health"],
  [
    "absolute form and a bad Host",
    formatRequest("http://x/health", { host: "Host: a b\r\n" }),
    "400",
  ],
  ["authority form", formatRequest("x:80"), "400"],
  ["asterisk form", formatRequest("*"), "400"],
  ["OPTIONS *", formatRequest("*", { method: "OPTIONS" }), "204"],
  ["OPTIONS * with a query", formatRequest("*?x", { method: "OPTIONS" }), "400"],
  ["CONNECT", formatRequest("x:80", { method: "CONNECT" }), "405"],
  ["CONNECT of a path", formatRequest("/", { method: "CONNECT" }), "400"],
  ["TRACE", formatRequest("/", { method: "TRACE" }), "405"],
  ["two slashes", formatRequest("//health"), "404"],
  ["encoded dots", formatRequest("/%2e%2e/health"), "404"],
  ["dots", formatRequest("/./health"), "404"],
  ["encoded slash", formatRequest("/%2fhealth"), "404"],
  ["encoded slash first", formatRequest("%2fhealth"), "400"],
  ["encoded NUL", formatRequest("/health%00"), "404"],
  ["path parameter", formatRequest("/health;x"), "404"],
  ["backslash", formatRequest("/\\health"), "404"],
  ["backslash first", formatRequest("\\health"), "400"],
  ["fragment", formatRequest("/health#x"), "200 /health"],
  ["fragment in an authority", formatRequest("http://x:5#0/health"), "200 /", "400"],
  ["UTF-8 in target", formatRequest("/\xc3\xa9"), "404"],
  ["Host that moves the path", formatRequest("/", { host: "Host: x/health?\r\n" }), "400"],
  ["Host with userinfo", formatRequest("/health", { host: "Host: u@x\r\n" }), "400"],
  ["Host of IPv6", formatRequest("/health", { host: "Host: [::1]:5000\r\n" }), "200 /health"],
  ["Host of half an IPv6", formatRequest("/", { host: "Host: [::1\r\n" }), "400"],
  ["Host that is not UTF-8", formatRequest("/", { host: "Host: \xff\r\n" }), "400"],
  ["empty Host", formatRequest("/", { host: "Host:\r\n" }), "400"],
  ["no Host", formatRequest("/health", { host: "" }), "200 /health"], // the version is not ours to see
  ["two Hosts", formatRequest("/", { fields: "Host: y\r\n" }), "400"],
  ["Host twice", formatRequest("/", { fields: "Host: x\r\n" }), "400"],
  [
    "two lengths",
    formatRequest("/", {
      method: "POST",
      fields: "Content-Length: 1\r\nContent-Length: 2\r\n",
      body: "ab",
    }),
    "400",
  ],
  [
    "list of lengths",
    formatRequest("/", { fields: "Content-Length: 1, 2\r\n", body: "ab" }),
    "400",
  ],
  ["negative length", formatRequest("/", { fields: "Content-Length: -1\r\n" }), "400"],
  [
    "hexadecimal length",
    formatRequest("/", { fields: "Content-Length: 0x2\r\n", body: "ab" }),
    "400",
  ],
  [
    "length beyond numbers",
    formatRequest("/", { fields: `Content-Length: ${"9".repeat(30)}\r\n` }),
    "400",
  ],
  [
    "length and chunks", // RFC 9112, 6.3 lets a server refuse, or go by the chunks
    formatRequest("/", {
      method: "POST",
      fields: `Content-Length: 2\r\n${CHUNKED}`,
      body: "0\r\n\r\n",
    }),
    "400",
    "405",
  ],
  [
    "coding that is not known",
    formatRequest("/", { fields: "Transfer-Encoding: gzip\r\n", body: "x" }),
    "400",
  ],
  [
    "chunks of HTTP/1.0",
    formatRequest("/", { version: "HTTP/1.0", fields: CHUNKED, body: "0\r\n\r\n" }),
    "400",
  ],
  [
    "bad chunk",
    formatRequest("/health", { fields: CHUNKED, body: "zz\r\nab\r\n" }),
    "closed",
    "200 /health",
  ],
  [
    "negative chunk",
    formatRequest("/", { method: "POST", fields: CHUNKED, body: "-1\r\n" }),
    "closed",
    "405",
  ],
  [
    "Expect: 100-continue",
    formatRequest("/", { method: "POST", fields: "Expect: 100-continue\r\nContent-Length: 2\r\n" }),
    "405",
  ],
  [
    "Expect of something else",
    formatRequest("/health", { fields: "Expect: x\r\n" }),
    "200 /health",
  ],
  [
    "Upgrade: h2c",
    formatRequest("/health", { fields: `Upgrade: h2c\r\n${UPGRADE}` }),
    "200 /health",
  ],
  [
    "Upgrade: websocket",
    formatRequest("/health", {
      fields: "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n",
    }),
    "200 /health",
  ],
  ["HTTP/1.0", formatRequest("/health", { version: "HTTP/1.0", host: "" }), "200 /health"],
  [
    "HTTP/1.0 with keep-alive",
    formatRequest("/health", { version: "HTTP/1.0", fields: "Connection: keep-alive\r\n" }),
    "200 /health",
  ],
  ["HTTP/2 by prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", "HTTP/2"],
  ["latin-1 in User-Agent", formatRequest("/", { fields: "User-Agent: \xe9\xff\r\n" }), "200 /"],
  [
    "UTF-8 in X-Forwarded-For",
    formatRequest("/", { fields: "X-Forwarded-For: \xc3\xa9\r\n" }),
    "200 /",
  ],
  [
    "forged log line",
    formatRequest("/", { fields: `User-Agent: x"}{"level":"error","msg":"forged"\x85\r\n` }),
    "200 /",
  ],
  [
    "body on GET",
    formatRequest("/health", { fields: "Content-Length: 5\r\n", body: "hello" }),
    "200 /health",
  ],
  [
    "endless body",
    formatRequest("/", {
      method: "POST",
      fields: "Content-Length: 1000000000\r\n",
      body: "x".repeat(1_000_000),
    }),
    "405",
  ],
  [
    "endless chunks",
    formatRequest("/", {
      method: "POST",
      fields: CHUNKED,
      body: `1000\r\n${"x".repeat(4096)}\r\n`.repeat(100),
    }),
    "405",
  ],
];

/** What a request comes to: a status, after 200 whose answer it is, or that the connection closed. */
async function findOutcome(port: number, bytes: string, thenClose = false): Promise<string> {
  using connection = await connect(port);
  const sending = connection.send(bytes)
    .then(() => thenClose ? connection.closeWrite() : undefined)
    .catch(() => {}); // the other end may have had enough
  try {
    while (true) {
      if (connection.received.startsWith("\0")) return "HTTP/2";
      const answer = connection.take();
      if (answer && answer.status !== 100) return describeAnswer(answer);
      if (
        !answer && !await connection.read(`what comes of ${JSON.stringify(bytes.slice(0, 500))}`)
      ) {
        return "closed";
      }
    }
  } finally {
    connection.close();
    await sending;
  }
}

function describeAnswer({ status, body }: Answer): string {
  return status +
    (body.includes('"endpoints"') ? " /" : body.includes('"healthy"') ? " /health" : "");
}

/** A small generator of random numbers (mulberry32), so that a seed says it all. */
function makeRandom(seed: number) {
  const next = () => {
    seed = seed + 0x6d2b79f5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
  const below = (limit: number) => Math.floor(next() * limit);
  return { below, of: <T>(items: readonly T[]): T => items[below(items.length)]! };
}

type Random = ReturnType<typeof makeRandom>;

const VALID = [
  formatRequest("/"),
  formatRequest("/health"),
  formatRequest("/health", { version: "HTTP/1.0", host: "" }),
  formatRequest("/health", { method: "HEAD" }),
  formatRequest("/?q=/health", {
    fields: "User-Agent: curl/8.5.0\r\nAccept: */*\r\nX-Forwarded-For: 192.0.2.1\r\n",
  }),
  formatRequest("/", { method: "OPTIONS" }),
  formatRequest("/", { method: "POST", fields: "Content-Length: 5\r\n", body: "hello" }),
  formatRequest("/", {
    method: "POST",
    fields: "Transfer-Encoding: chunked\r\n",
    body: "5\r\nhello\r\n0\r\n\r\n",
  }),
  formatRequest("http://x:5000/health"),
  formatRequest(OTHER_PATH) + formatRequest("/health"),
];
const TOKENS = [
  ...[
    "\0",
    "\r",
    "\n",
    "\r\n",
    " ",
    "\t",
    ":",
    "/",
    "//",
    "?",
    "#",
    "@",
    "%",
    "\\",
    "*",
    "[",
    "]",
    "\xff",
  ],
  ...[
    "/health",
    "Host: y\r\n",
    "Content-Length: 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "HTTP/1.1",
  ],
  ...["-1", "99999999999999999999", "0x10", "Connection: close\r\n", "Expect: 100-continue\r\n"],
  "a".repeat(9000),
];
const MUTATIONS: ((text: string, random: Random) => string)[] = [
  splice((_, random) => random.of(TOKENS), 0), // insert a token
  splice((_, random) => random.of(TOKENS), 8), // replace by a token
  splice((_, random) => String.fromCharCode(random.below(256)), 1), // replace a byte
  splice(() => "", 12), // delete
  splice((cut) => cut + cut, 20), // repeat
  (text, random) => text.slice(0, random.below(text.length)), // truncate
];

function splice(make: (cut: string, random: Random) => string, most: number) {
  return (text: string, random: Random) => {
    const at = random.below(text.length + 1);
    const cut = text.slice(at, at + (most && 1 + random.below(most)));
    return text.slice(0, at) + make(cut, random) + text.slice(at + cut.length);
  };
}

for (const form of FORMS) {
  const test = bindTest(form);

  test(`${HOSTILE.length} hostile requests get their status, and the next one its answer`, async () => {
    await using service = await start(form, { LOG_LEVEL: "debug", TRUST_PROXY: "1" });
    for (const [name, bytes, ...expected] of HOSTILE) {
      const found = await findOutcome(service.port, bytes);
      assert(expected.includes(found), `${name}: ${found} instead of ${expected.join(" or ")}`);
      assertEquals((await probe(service.port)).status, 200, `after ${name}`);
    }
    service.kill("SIGTERM");
    await service.waitForCode();
    const requests = service.lines.filter(({ msg }) => msg === "request");
    assertEquals(
      service.lines.length - requests.length,
      3,
      "start, drain and stop, nothing forged",
    );
    assertEquals(requests.filter(({ level }) => level === "error"), []);
  });

  test("thousands of mutated requests: no 5xx, no other route's answer, no hang", async () => {
    const seed = Number(Deno.env.get("FUZZ_SEED") || Date.now() % 2 ** 32);
    const count = Number(Deno.env.get("FUZZ_COUNT") || (IS_FULL ? 20_000 : 3000));
    console.log(`FUZZ_SEED=${seed} FUZZ_COUNT=${count}`);
    const random = makeRandom(seed);
    await using service = await start(form, { TRUST_PROXY: "1" });
    const makeMutant = () => {
      let bytes = random.of(VALID);
      for (let n = random.below(4); n >= 0; n--) bytes = random.of(MUTATIONS)(bytes, random);
      return bytes;
    };
    const work = async (share: number) => {
      while (share-- > 0) {
        const bytes = makeMutant();
        const found = await findOutcome(service.port, bytes, true);
        const about = `${found} for ${JSON.stringify(bytes)}, FUZZ_SEED=${seed}`;
        assertMatch(found, /^([1234]\d\d.*|closed|HTTP\/2)$/, about);
        const targets = Array.from(
          bytes.matchAll(/^\S+ (\S*?)([?#]\S*)? HTTP\//gm),
          ([, target]) => target!.replace(/^[^:/]*:\/\/[^/]*/, "") || "/",
        );
        if (found.endsWith(" /health")) assert(targets.includes("/health"), about);
        if (found.endsWith(" /")) assert(targets.includes("/"), about);
      }
    };
    await Promise.all(Array.from({ length: 16 }, () => work(count / 16)));
    assertEquals((await probe(service.port)).status, 200);
    service.kill("SIGTERM");
    await service.waitForCode();
    assertEquals(service.lines.filter(({ level }) => level === "error"), []);
  });
}

// ---- Slow, silent and too many clients ----

/** What none of the floods may make the service hold: the limit that `deploy` gives it. */
const MAX_MEGABYTES = 256;
const DEPLOYED: Limits = { memory: `${MAX_MEGABYTES}m` };

/** Opens so many connections. */
function connectMany(port: number, count: number) {
  return Promise.all(Array.from({ length: count }, () => connect(port)));
}

async function waitForDescriptors(run: Run, most: number) {
  await waitUntil(
    `at most ${most} descriptors`,
    async () => (await readResources(run)).descriptors,
    (descriptors) => descriptors <= most,
  );
}

for (const form of FORMS) {
  const test = bindTest(form);

  const [size, waves] = IS_FULL ? [5000, 5] : [1000, 3];
  test(
    `${size} half requests, ${waves} times over: probes answer, and memory stays bounded`,
    async () => {
      await using service = await start(form, {}, DEPLOYED);
      const before = await readResources(service);
      const peaks: number[] = [];
      for (let wave = 0; wave < waves; wave++) {
        const clients = await connectMany(service.port, size);
        await Promise.all(
          clients.map((client) => client.send("GET / HTTP/1.1\r\nHost: x\r\nX-Half: ")),
        );
        assertEquals((await probe(service.port)).status, 200);
        peaks.push((await readResources(service)).megabytes);
        for (const client of clients) client.close();
        await waitForDescriptors(service, before.descriptors + 5);
      }
      console.log(`${before.megabytes} MB, then ${peaks.join(", ")} MB`);
      // the C library keeps what was freed for the next wave, which then needs no more
      assertLess(Math.max(...peaks), MAX_MEGABYTES);
      assertLess(peaks.at(-1)!, peaks.at(-2)! * 1.1);
    },
    lacksProc,
    lacksDescriptors(size + 200),
  );

  const readers = IS_FULL ? 1000 : 300;
  test(
    `${readers} clients that never read: probes answer, and descriptors come back`,
    async () => {
      await using service = await start(form, {}, DEPLOYED);
      const before = await readResources(service);
      const clients = await connectMany(service.port, readers);
      // more answers than the kernel buffers, so that the service itself is stuck with them
      await Promise.all(clients.map((client) => client.send(formatRequest("/").repeat(100))));
      assertEquals((await probe(service.port)).status, 200);
      const { megabytes } = await readResources(service);
      console.log(`${before.megabytes} MB, then ${megabytes} MB`);
      assertLess(megabytes, MAX_MEGABYTES);
      for (const client of clients) client.close();
      await waitForDescriptors(service, before.descriptors + 5);
    },
    lacksProc,
    lacksDescriptors(readers + 200),
  );

  test("clients that connect and reset in a loop leave nothing behind", async () => {
    await using service = await start(form);
    const before = await readResources(service);
    for (let n = 0; n < 2000; n++) {
      using client = await connect(service.port);
      await client.send(formatRequest("/")); // whose answer stays unread, which makes the end a reset
      if (n % 500 === 0) assertEquals((await probe(service.port)).status, 200);
    }
    await waitForDescriptors(service, before.descriptors + 5);
    const { megabytes } = await readResources(service);
    console.log(`${before.megabytes} MB, then ${megabytes} MB`);
    assertLess(megabytes, MAX_MEGABYTES);
    assertEquals((await probe(service.port)).status, 200);
  }, lacksProc);
}

// ---- Rolling update ----

/** Makes the configuration of an HAProxy in front of these ports, which hides no failure. */
function formatBalancer(frontend: number, stats: number, ports: number[]): string {
  return `
defaults
  mode http
  timeout connect 1s
  timeout client 10s
  timeout server 10s
  timeout check 5s
  retries 0 # what an instance loses is to be seen
frontend web
  bind 127.0.0.1:${frontend}
  default_backend instances
frontend numbers
  bind 127.0.0.1:${stats}
  stats enable
  stats uri /
backend instances
  balance roundrobin
  option httpchk GET /health
  default-server check inter 250ms fall 2 rise 1
${ports.map((port) => `  server s${port} 127.0.0.1:${port}`).join("\n")}
`;
}

/**
 * Replaces three instances behind HAProxy in turn, under constant load from clients that keep their
 * connections and clients that do not.
 */
async function updateInTurn(form: Form, signal: "SIGTERM" | "SIGKILL") {
  const [frontend, stats, ...ports] = Array.from({ length: 5 }, findFreePort) as [
    number,
    number,
    ...number[],
  ];
  const configuration = makeTempPath("haproxy.cfg");
  Deno.writeTextFileSync(configuration, formatBalancer(frontend, stats, ports));
  // inter × (fall + 1) is 0.75 s, so that the drain has room for a machine that is busy
  const startInstance = (port: number) => start(form, { PORT: String(port), DRAIN_SECONDS: "2" });
  await using stack = new AsyncDisposableStack();
  const instances = await Promise.all(ports.map(startInstance));
  stack.defer(async () => {
    for (const instance of instances) await instance[Symbol.asyncDispose]();
  });
  const haproxy = makeProcessForm("HAProxy", () => ["haproxy", "-db", "-f", configuration]);
  stack.use(await launch(haproxy));
  const readState = async (port: number) => {
    const response = await fetch(`http://127.0.0.1:${stats}/;csv`).catch(() => null);
    const line = (await response?.text() ?? "").split("\n").find((line) =>
      line.includes(`,s${port},`)
    );
    return line?.split(",")[17] ?? "unknown";
  };
  const waitUntilUp = (port: number) =>
    waitUntil(
      `HAProxy to see ${port} up`,
      () => readState(port),
      (state) => state.startsWith("UP"),
    );
  const failures: string[] = [];
  let requests = 0;
  let isRunning = true;
  const load = async (request: () => Promise<number>) => {
    while (isRunning) {
      requests++;
      const result = await request().catch(String);
      if (result !== 200) failures.push(String(result));
    }
  };
  const keepAlive = async () => {
    const response = await fetch(`http://127.0.0.1:${frontend}/`);
    await response.body?.cancel();
    return response.status;
  };
  const closing = formatRequest("/", { fields: "Connection: close\r\n" });
  const oneShot = async () => (await sendRaw(frontend, closing)).status;
  for (const port of ports) await waitUntilUp(port);
  const clients = [keepAlive, keepAlive, keepAlive, oneShot, oneShot, oneShot].map(load);
  try {
    const turns = IS_FULL ? 6 : 1;
    for (let turn = 0; turn < turns; turn++) {
      const index = turn % 3;
      const port = ports[index]!;
      if (signal === "SIGTERM") {
        instances[index]!.kill(signal);
        assertEquals(await instances[index]!.waitForCode(), 0);
      } else await instances[index]!.destroy();
      instances[index] = await startInstance(port);
      await waitUntilUp(port);
    }
  } finally {
    isRunning = false;
    await Promise.all(clients);
  }
  return { requests, failures };
}

for (const form of FORMS) {
  bindTest(form)(
    "a rolling update behind HAProxy loses nothing with a drain, and something without",
    async () => {
      const drained = await updateInTurn(form, "SIGTERM");
      assertEquals(drained.failures, []);
      assertGreater(drained.requests, 1000);
      // by chance no request may be running at the moment of the kill
      const killed = await repeatUntil(
        ({ failures }) => failures.length > 0,
        () => updateInTurn(form, "SIGKILL"),
      );
      assertGreater(killed.failures.length, 0, "a kill without a drain is noticed");
      console.log(
        `failed requests: ${drained.failures.length} of ${drained.requests} with a drain, ` +
          `${killed.failures.length} of ${killed.requests} with SIGKILL`,
      );
    },
    lacks("haproxy"),
  );
}

// ---- Long runs and odd clocks ----

const SOAK = Number(Deno.env.get("SOAK") || 0);
const FAKETIME = ["x86_64", "aarch64"]
  .map((cpu) => `/usr/lib/${cpu}-linux-gnu/faketime/libfaketime.so.1`)
  .find(isFile);

/** Loads the service for two seconds and gives the number of requests that were answered with 2xx. */
async function load(port: number, path: string): Promise<number> {
  const report = await readOutput([
    "wrk",
    "-t1",
    "-c32",
    "-d2s",
    `http://127.0.0.1:${port}${path}`,
  ]);
  assertNotMatch(report, /Non-2xx|Socket errors/);
  return Number(/(\d+) requests in/.exec(report)![1]);
}

for (const form of FORMS) {
  const test = bindTest(form);

  test(
    "uptime stays monotonic while the wall clock jumps a day back and forth",
    async () => {
      const file = makeTempPath("time");
      const jumpTo = (day: number) => Deno.writeTextFile(file, `2026-01-0${day} 12:00:00`);
      await jumpTo(5);
      await using service = await start(form, {
        LD_PRELOAD: FAKETIME!,
        FAKETIME_TIMESTAMP_FILE: file,
        FAKETIME_NO_CACHE: "1",
        FAKETIME_DONT_FAKE_MONOTONIC: "1",
        DONT_FAKE_MONOTONIC: "1",
        TZ: "UTC",
      });
      let last = 0;
      for (const day of [5, 4, 6, 5]) {
        await jumpTo(day);
        const readTime = async () => {
          const { timestamp, uptime_seconds } = JSON.parse((await probe(service.port)).body);
          assertGreaterOrEqual(uptime_seconds, last);
          assertLess(uptime_seconds, 60);
          last = uptime_seconds;
          return timestamp;
        };
        const date = `2026-01-0${day}`;
        await waitUntil(date, readTime, (timestamp) => timestamp.startsWith(date));
      }
    },
    form.isImage && "its clock cannot be faked",
    !FAKETIME && "libfaketime is not installed",
  );

  test(
    "a soak leaves memory and descriptors as they were",
    async () => {
      await using service = await start(form, {}, DEPLOYED);
      const { descriptors } = await readResources(service);
      const seen = [];
      let requests = 0;
      for (let tenth = 1; tenth <= 10; tenth++) {
        for (let round = 0; requests < SOAK * tenth / 10; round++) {
          requests += await load(service.port, round % 2 ? "/health" : "/");
        }
        await waitForDescriptors(service, descriptors + 2); // wrk leaves without waiting
        seen.push(await readResources(service));
      }
      const [first, last] = [seen.at(0)!, seen.at(-1)!];
      console.log(`${requests} requests: ${seen.map(({ megabytes }) => megabytes).join(", ")} MB`);
      assertLessOrEqual(last.megabytes, first.megabytes * 1.1, "memory grows"); // that it falls is no fault
      assertLessOrEqual(Math.abs(last.descriptors - first.descriptors), 2, "descriptors");
      service.kill("SIGTERM");
      assertEquals(await service.waitForCode(), 0);
    },
    lacksProc,
    !SOAK && "SOAK does not say how many requests",
    lacks("wrk"),
  );
}
