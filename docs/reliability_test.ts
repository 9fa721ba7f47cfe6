/** The proof of `reliability.md`, part by part. */
import { assert, assertArrayIncludes, assertEquals, assertGreater } from "@std/assert";
import { assertLess, assertMatch, assertNotMatch } from "@std/assert";
import { type Form, FORMS, IS_FULL, wrapForm } from "../.test/forms.ts";
import { isFile, lacks, makeTempPath, readOutput } from "../.test/programs.ts";
import { connect, formatRequest, probe } from "../.test/requests.ts";
import { bindSpec, launch, readResources, type RunningService } from "../.test/run.ts";
import { share, SIGNAL_PAUSE, start } from "../.test/run.ts";
import { sleep, waitUntil } from "../.test/waiting.ts";

const lacksProc = Deno.build.os !== "linux" && "needs /proc";

/** Stops a service, which must be in order, and gives its messages. */
async function stop(service: RunningService) {
  service.kill("SIGTERM");
  assertEquals(await service.waitForCode(), 0);
  return service.lines.map(({ msg }) => msg);
}

// ---- Malformed and odd requests ----

const LENGTH = "Content-Length: 5\r\n";
const ask = (target: string) => formatRequest(target);
const get = (fields: string) => formatRequest("/", { fields: `${fields}\r\n` });
const post = (fields: string, body = "") => formatRequest("/", { method: "POST", fields, body });
const withHost = (host: string) => formatRequest("/health", { host: `Host: ${host}\r\n` });

/** Raw requests, by what they get (a status, after 200 whose answer it is) and what they are. */
const REQUESTS = {
  "400 to other protocols": [
    ...["GET /\r\n\r\n", "GET /health\r\n", "\x16\x03\x01\x02\0\x01\0\x01\xfc"],
    ...["HTTP/9.9", "http/1.1"].map((version) => formatRequest("/", { version })),
  ],
  "400 to malformed request lines": [
    ...["GET  / HTTP/1.1", " GET / HTTP/1.1", "GET\t/\tHTTP/1.1"].map((line) => line + "\r\n\r\n"),
    ...["", "G(T", "CONNECT"].map((method) => formatRequest("/", { method })),
    ...["/\0", "x:80", "*", "%2fhealth", "\\health"].map(ask),
  ],
  "400 to malformed fields": ["X: a\0b", "X\0: a", "X: a\x01b", "X", "Content-Length: -1"].map(get),
  "400 to a malformed Host, or two": [
    ...["x/health?", "x/?", "u@x", "a b"].map(withHost),
    formatRequest("/", { host: "Host: \xff\r\n" }), // for /health Deno reads it as no Host
    get("Host: y"),
  ],
  "404 to other paths": [
    ...["//health", "/./health", "/%2e%2e/health", "/%2fhealth", "/health%00", "/health;x"],
    ...["/\\health", "/\xc3\xa9", "/" + "a".repeat(8000)],
  ].map(ask),
  "405 to other methods, with and without content": [
    ...["BREW", "TRACE"].map((method) => formatRequest("/", { method })),
    formatRequest("x:80", { method: "CONNECT" }),
    post(LENGTH, "hello"),
    post(`Expect: 100-continue\r\n${LENGTH}`),
    post("Transfer-Encoding: chunked\r\n", "4\r\nxxxx\r\n".repeat(1000) + "0\r\n\r\n"),
  ],
  "200 / to absolute targets": ["http://x", "http://x?/health"].map(ask),
  "200 / to agents that would end a line of the log": ["\xe9", '"}{"\x85{"x":"']
    .map((agent) => get(`User-Agent: ${agent}`)),
  "200 /health to absolute targets": ["http://x/health", "http://y:81/health?q"].map(ask),
  "200 /health to fragments and content": [
    ask("/health#x"),
    formatRequest("/health", { fields: LENGTH, body: "hello" }),
  ],
  "200 /health to an odd Host, or none": [
    ...["", "::1", "[::1]:5000", "x:"].map(withHost),
    ...["HTTP/1.1", "HTTP/1.0"].map((version) => formatRequest("/health", { version, host: "" })),
  ],
  "204 to OPTIONS *": [formatRequest("*", { method: "OPTIONS" })],
  "400 or 414 or 431 or closed to more than Deno takes": [
    ask("/" + "a".repeat(70_000)),
    get("X: a\r\n".repeat(200)),
  ],
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
    if (answer?.body.includes('"endpoints"')) outcome = "200 /";
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
  ...[
    "\r\n",
    "//",
    "/health",
    "HTTP/1.1",
    "Host: y\r\n",
    "Connection: close\r\n",
    "a".repeat(9000),
  ],
];

/** Requests that are changed at random. The seed says all. */
function* makeMutants(seed: number): Generator<string> {
  const below = (limit: number) => {
    seed = Math.imul(seed, 1664525) + 1013904223 >>> 0; // Knuth's generator
    return Math.floor(seed / 2 ** 32 * limit);
  };
  const pick = <T>(items: readonly T[]): T => items[below(items.length)]!;
  const texts = Object.values(REQUESTS).flat().filter((text) => text.length < 300);
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
  Deno.test(formSpec("odd requests get their status, the next its answer", async (context) => {
    await using service = await start(form, { LOG_LEVEL: "debug", TRUST_PROXY: "1" });
    for (const [name, texts] of Object.entries(REQUESTS)) {
      await context.step(name, async () => {
        const expected = name.split(" to ")[0]!.split(" or ");
        for (const text of texts) {
          assertArrayIncludes(expected, [await findOutcome(service.port, text)], show(text));
          assertEquals((await probe(service.port)).status, 200, `after ${show(text)}`);
        }
      });
    }
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
        assertMatch(found, /^([234]\d\d( .*)?|closed)$/, about);
        const targets = text.matchAll(/^\S+ (?:[^:/ ]*:\/\/[^/?# ]*)?(\S*?)([?#]\S*)? HTTP\//gm);
        const paths = Array.from(targets, ([, path]) => `200 ${path || "/"}`);
        if (found.startsWith("200 ")) assert(paths.includes(found), about);
      }
    };
    await Promise.all(Array.from(Array(16), work));
    await stop(service);
    assertNotMatch(service.stdout, /^.{40,50}"level":"error"/m);
  }));

  Deno.test(formSpec("slow heads, bodies and readers leave it available", async () => {
    await using service = await start(form);
    const common = `-c 200 -r 200 -i 2 -l 5 -p 3 -u ${service.url}/`;
    await Promise.all(
      ["-H", "-B -t POST", "-X -w 10 -y 20 -n 5 -z 32 -k 3"].map(async (kind) => {
        const report = await readOutput(`slowhttptest ${kind} ${common}`.split(" "));
        assertMatch(report, /service available:\S*\s+\S*YES/, kind);
        assertNotMatch(report, /service available:\S*\s+\S*NO/, kind);
      }),
    );
  }, { unless: IS_FULL ? lacks("slowhttptest") : "with FULL=1" }));
}

// ---- Out of descriptors ----

const AWAY = "cannot accept connections";

const setDescriptors = async (service: RunningService, most: number) =>
  await readOutput(["prlimit", "--pid", String(await service.readPid()), `--nofile=${most}:`]);

/** Lets the descriptors run out, by one client too many, until the log says so. */
async function exhaust(service: RunningService) {
  await probe(service.port); // so that it holds more than the limit allows
  await setDescriptors(service, 5);
  await connect(service.port).then((client) => client.close(), () => {});
  await waitUntil("the listener to go", () => service.lines.at(-1)!.msg === AWAY);
}

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  const reasons = [form.isImage && "a container's limits stay", lacksProc, lacks("prlimit")];

  Deno.test(formSpec("too many clients are served who are in, and others later", async () => {
    await using service = await start(form, {}, { descriptors: 64 });
    const opening = Array.from(Array(100), () => connect(service.port).catch(() => undefined));
    const clients = await Promise.all(opening);
    await clients[0]!.send(ask("/health"));
    assertEquals((await clients[0]!.receive())?.status, 200);
    for (const client of clients) client?.close();
    await service.waitForOutput(/"listening"[^]*"listening"/);
    assertEquals((await probe(service.port)).status, 200);
  }));

  Deno.test(formSpec("the log says once a second that its port is away", async () => {
    await using service = await start(form);
    await exhaust(service);
    await waitUntil("three lines", () => service.lines.length === 4);
    await setDescriptors(service, 1024);
    await service.waitForOutput(/"listening"[^]*"listening"/);
    assertEquals((await probe(service.port)).status, 200);
    const away = service.lines.filter(({ msg }) => msg === AWAY);
    const times = away.map(({ time }) => Date.parse(String(time)));
    for (const n of [1, 2]) assertGreater(times[n]! - times[n - 1]!, 900);
    for (const { level, error } of away) {
      assertMatch(`${level} ${error}`, /^error .*os error 24\b/);
    }
    await exhaust(service); // a second time, and a stop meanwhile
    const messages = await stop(service);
    assertEquals(messages.slice(-3), [AWAY, "draining", "stopped"]);
  }, { unless: reasons }));

  Deno.test(formSpec("a port that is taken meanwhile: one line, and exit 1", async () => {
    await using service = await start(form);
    await exhaust(service);
    const address = { hostname: "127.0.0.1", port: service.port };
    const take = () => Promise.try(() => Deno.listen(address)).catch(() => undefined);
    using _taker = await waitUntil("the service to leave the port free", take);
    await setDescriptors(service, 1024);
    assertEquals(await service.waitForCode(), 1);
    assertMatch(service.stderr, /^cannot listen on 127\.0\.0\.1 port \d+: .*in use.*\n$/);
  }, { unless: reasons }));
}

// ---- Standard output and standard error that nobody reads ----

/** Sends requests on one connection, and a probe. Each makes a line of 1.2 kB in the log. */
async function sendBatch({ port }: RunningService, count: number) {
  using connection = await connect(port);
  const fields = `User-Agent: ${"a".repeat(1000)}\r\n`;
  const texts = Array.from(Array(count), (_, n) => formatRequest(`/${n}`, { fields }));
  const sending = connection.send(texts.join("") + "GET /health HTTP/1.0\r\n\r\n");
  const [answers] = await Promise.all([connection.receiveAll(), sending]);
  assertEquals(answers.split(" 404 Not Found\r\n").length - 1, count);
}

/** The form whose standard output fails instead of waiting when it is full. */
function makeNonBlocking(form: Form): Form {
  const setting = "fcntl(STDOUT, F_SETFL, O_WRONLY | O_NONBLOCK) or die; exec @ARGV";
  return wrapForm(form, (command) => ["perl", "-MFcntl", "-e", setting, ...command]);
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
  const reasons = [readByDocker, lacks("perl")];

  Deno.test(formSpec("lines wait for a reader; above 1 MB they are lost, and counted", async () => {
    const forms = [form, makeNonBlocking(form)];
    const cases = forms.flatMap((pipe) => [400, 1300].map((count) => ({ pipe, count })));
    await Promise.all(cases.map(async ({ pipe, count }) => {
      const isLost = count > 1000;
      await using service = await start(pipe);
      service.pause();
      await sendBatch(service, count);
      await sleep(500); // the time to fill the pipe; one that fills late may get lines twice
      service.resume();
      await service.waitForOutput(isLost ? /log lines dropped/ : /"msg":"request"/);
      service.kill("SIGTERM");
      assertEquals(await service.waitForCode(), 0);
      // where a write failed, a line may be cut and come again
      const seen = new Set(service.stdout.match(/"path":"\/\d+"/g)).size;
      const numbers = Array.from(service.stdout.matchAll(/"dropped":(\d+)/g), ([, n]) => Number(n));
      const dropped = numbers.reduce((sum, n) => sum + n, 0);
      assertEquals([seen + dropped, dropped > 0], [count, isLost]);
    }));
  }, { unless: reasons }));

  Deno.test(formSpec("a reader that hangs or leaves holds up no end", async () => {
    const end = async (leave: "pause" | "abandon", DRAIN_SECONDS: string) => {
      await using service = await start(form, { DRAIN_SECONDS });
      await service[leave]();
      await sendBatch(service, 300);
      service.kill("SIGTERM");
      if (DRAIN_SECONDS !== "0") await sleep(SIGNAL_PAUSE).then(() => service.kill("SIGINT"));
      assertEquals(await service.waitForCode(), DRAIN_SECONDS === "0" ? 0 : 130);
    };
    const ends = ["0", "60"].flatMap((drain) => [end("pause", drain), end("abandon", drain)]);
    await Promise.all(ends);
  }, { unless: readByDocker }));

  Deno.test(formSpec("a full pipe holds up no message", async () => {
    const { port } = await share(form);
    const env = { HOST: "127.0.0.1", PORT: String(port) };
    const cases = [
      { descriptor: 2, args: [], code: 1 },
      { descriptor: 2, args: ["bad"], code: 2 },
      { descriptor: 1, args: ["--help"], code: 0 },
      { descriptor: 1, args: ["--health"], code: 0 },
    ];
    await Promise.all(cases.map(async ({ descriptor, args, code }) => {
      await using run = await launch(fillPipe(form, descriptor), env, args);
      assertEquals(await run.waitForCode(), code, `${args}`);
    }));
  }, { unless: readByDocker }));
}

// ---- Long runs and odd clocks ----

const SOAK = Number(Deno.env.get("SOAK") || 0);
const FAKETIME = `/usr/lib/${Deno.build.arch}-linux-gnu/faketime/libfaketime.so.1`;
const LACKS_FAKETIME = !isFile(FAKETIME) && "libfaketime is not installed";
const NO_SOAK = [lacksProc, !SOAK && "SOAK does not say how many requests", lacks("wrk")];

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
  }, { unless: form.isImage ? "its clock stays" : LACKS_FAKETIME }));

  Deno.test(formSpec("a soak leaves memory as it was", async () => {
    await using service = await start(form, {}, { memory: "256m" });
    const seen: number[] = [];
    let requests = 0;
    while (requests < SOAK || seen.length < 9) {
      const report = await readOutput(["wrk", "-t1", "-c32", "-d2s", service.url]);
      assertNotMatch(report, /Non-2xx|Socket errors/);
      requests += Number(/(\d+) requests in/.exec(report)![1]);
      seen.push((await readResources(service)).megabytes);
    }
    console.log(`${requests} requests: ${seen.join(", ")} MB`);
    // it rises over the first 100,000 requests, then goes up and down
    const third = Math.floor(seen.length / 3);
    assertLess(Math.max(...seen.slice(-third)), Math.max(...seen.slice(third, -third)) * 1.1);
  }, { unless: NO_SOAK }));
}
