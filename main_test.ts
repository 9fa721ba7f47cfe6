/**
 * The contract of `main.ts`: its functions with every table, in this process; then the black box,
 * which proves each mechanism once for each form of the service.
 */
import { assert, assertAlmostEquals, assertEquals, assertMatch, assertThrows } from "@std/assert";
import { CONTRACT_FORMS, SOURCE, wrapForm } from "./.test/forms.ts";
import { makeTempPath, runProgram } from "./.test/programs.ts";
import {
  connect,
  formatRequest,
  HAS_IPV6,
  sendFrames,
  sendHttp2,
  sendRaw,
} from "./.test/requests.ts";
import { bindSpec, DEFAULTS, launch, leaveOut, share, start } from "./.test/run.ts";
import { waitFor, waitUntil } from "./.test/waiting.ts";
import { type Config, createClock, createLogger, handle, main, parseConfig } from "./main.ts";
import type { Service } from "./main.ts";
import project from "./deno.json" with { type: "json" };

// ---- Configuration and time ----

/** Each variable, its default, and what is allowed: these words, or numbers up to this one. */
const VARIABLES: [keyof Config, string | number, string[] | number][] = [
  ["HOST", "0.0.0.0", ["0.0.0.0", "::", "127.0.0.1", "::1", "localhost"]],
  ["PORT", 5000, 65535],
  ["LOG_LEVEL", "info", ["debug", "info", "warn", "error"]],
  ["LOG_FORMAT", "json", ["json", "text"]],
  ["TRUST_PROXY", 0, 16],
  ["DRAIN_SECONDS", 0, 300],
  ["SHUTDOWN_SECONDS", 8, 300],
];

function describeAllowed(allowed: string[] | number): string {
  return typeof allowed === "number" ? `a whole number from 0 to ${allowed}` : allowed.join(", ");
}

function parse(env: Record<string, string>, isTerminal = false): Config {
  return parseConfig(new Map(Object.entries(env)), isTerminal);
}

Deno.test("parseConfig() gives every default where variables are unset or empty", () => {
  const defaults = Object.fromEntries(VARIABLES);
  assertEquals<object>(parse({}), defaults);
  const names = [...Object.keys(defaults), "DENO_SERVE_ADDRESS", "DENO_TRUST_PROXY_HEADERS"];
  assertEquals<object>(parse(Object.fromEntries(names.map((name) => [name, ""]))), defaults);
});

Deno.test("parseConfig() has text as the default of LOG_FORMAT on a terminal", () => {
  assertEquals(parse({}, true), { ...parse({}), LOG_FORMAT: "text" });
  assertEquals(parse({ LOG_FORMAT: "json" }, true), parse({}));
});

for (const [name, , allowed] of VARIABLES) {
  Deno.test(`parseConfig() takes what is allowed for ${name}, and says it of all else`, () => {
    const [good, bad] = typeof allowed === "number"
      ? [["0", "1", `${allowed}`], [`${allowed + 1}`, "-1", "1.5", "0x1", " 1", "1e1", "000001"]]
      : [allowed, ["other", "0", ` ${allowed[0]}`, `${allowed[0]}x`, "INFO", "10.0.0.1"]];
    for (const value of good) assertEquals(String(parse({ [name]: value })[name]), value);
    for (const value of bad) {
      const { message } = assertThrows(() => parse({ [name]: value }), RangeError);
      assertEquals(message, `${name}="${value}": allowed is ${describeAllowed(allowed)}`);
    }
  });
}

const NOON = "2026-01-07T12:00:00.000Z";

for (
  const [uptime, uptime_seconds, uptime_human] of [
    [0, 0, "0 hours, 0 minutes"],
    [59_999.9, 59, "0 hours, 0 minutes"],
    [60_000, 60, "0 hours, 1 minute"],
    [3_660_000, 3660, "1 hour, 1 minute"],
    [7_199_999, 7199, "1 hour, 59 minutes"],
    [49 * 3_600_000, 176_400, "49 hours, 0 minutes"],
  ] as const
) {
  Deno.test(`createClock() says an uptime of ${uptime} ms as ${uptime_human}`, () => {
    const { describe, monotonic } = createClock(() => Date.parse(NOON), () => uptime);
    assertEquals(describe(), { uptime_seconds, uptime_human, current_time: NOON, timezone: "UTC" });
    assertEquals(monotonic(), uptime);
  });
}

Deno.test("createClock() keeps what it tells for a millisecond, and no longer", () => {
  let wall = Date.parse(NOON);
  const { describe } = createClock(() => wall++, () => 5.1);
  const milliseconds = [describe(), describe(5.99), describe(6), describe(6.5)]
    .map(({ current_time }) => Date.parse(current_time) - Date.parse(NOON));
  assertEquals(milliseconds, [0, 0, 1, 1]);
});

// ---- Answers ----

const SYSTEM_JSON =
  '{"hostname":"my-laptop","platform":"Linux","platform_version":"6.8.0-45-generic",' +
  '"architecture":"x86_64","cpu_count":8,"deno_version":"2.9.6"}';
const SYSTEM: Service["system"] = JSON.parse(SYSTEM_JSON);

/** A service at noon that has run for so many milliseconds, and the log lines it writes. */
function makeService(config: Partial<Config> = {}, uptime = 0) {
  const time = { uptime };
  const clock = createClock(() => Date.parse(NOON) + time.uptime - uptime, () => time.uptime);
  const { log, readLines } = makeLogger(takeAll, { LOG_LEVEL: "debug", ...config }, clock);
  const parts = { config: { ...DEFAULTS, ...config }, system: SYSTEM, clock, log };
  const service: Service = { ...parts, status: "healthy" };
  return { service, time, readLines };
}

/** The same service, where this happens once a request has come to `GET /`. */
function interrupt(service: Service, happen: () => void): Service {
  return Object.defineProperty({ ...service }, "system", { get: () => (happen(), SYSTEM) });
}

function fail(): never {
  throw new Error("the cause");
}

/** A request as Deno hands it over: `new Request` would normalize target and method. */
function makeRequest(words = "GET /", headers: HeadersInit = {}): Request {
  const [method = "", target = ""] = words.split(" ");
  const fields = new Headers(headers);
  const url = `http://${fields.get("host") ?? "x"}${target}`;
  return { url, method, headers: fields } as Request;
}

function ask(service: Service, request = makeRequest(), hostname = "192.0.2.1"): Response {
  return handle(service, request, { remoteAddr: { hostname } });
}

/** Asks a new service, and gives its answer and the log line. */
async function exchange(request: Request, config: Partial<Config> = {}, hostname?: string) {
  const { service, readLines } = makeService(config);
  const response = ask(service, request, hostname);
  const [body, [line]] = [await response.text(), await readLines()];
  return { status: response.status, headers: Object.fromEntries(response.headers), body, line };
}

const BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
const COMMON = { "cache-control": "no-store", "x-content-type-options": "nosniff" };
const TYPES = { json: "application/json", html: "text/html; charset=utf-8" };
const BODIES: Record<number, string> = {
  204: "",
  400: '{"error":"Bad Request","message":"Host is not valid"}\n',
  404: '{"error":"Not Found","message":"Endpoint does not exist"}\n',
  405: '{"error":"Method Not Allowed","message":"Endpoint allows GET, HEAD, OPTIONS"}\n',
  500: '{"error":"Internal Server Error","message":"An unexpected error occurred"}\n',
};

Deno.test("handle() answers GET / with exactly these bytes, and logs when it ended", async () => {
  const { service, readLines, time } = makeService({}, 3_600_999);
  const busy = interrupt(service, () => time.uptime += 12.34567);
  const response = ask(busy, makeRequest("GET /?x", { "user-agent": "curl/8.5.0" }));
  assertEquals(response.status, 200);
  assertEquals(
    await response.text(),
    `{"service":{"name":"devops-info-service","version":"${project.version}",` +
      `"description":"DevOps course info service","framework":"Deno.serve"},` +
      `"system":${SYSTEM_JSON},` +
      `"runtime":{"uptime_seconds":3600,"uptime_human":"1 hour, 0 minutes",` +
      `"current_time":"2026-01-07T12:00:00.000Z","timezone":"UTC"},` +
      `"request":{"client_ip":"192.0.2.1","user_agent":"curl/8.5.0","method":"GET","path":"/"},` +
      `"endpoints":[{"path":"/","method":"GET","description":"Service information"},` +
      `{"path":"/health","method":"GET","description":"Health check"}]}\n`,
  );
  const [{ time: ended, duration_ms }] = await readLines();
  assertEquals([ended, duration_ms], ["2026-01-07T12:00:00.012Z", 12.346]);
});

for (const [status, code] of [["healthy", 200], ["unhealthy", 503], ["draining", 503]] as const) {
  Deno.test(`handle() answers GET /health with ${code} when ${status}`, async () => {
    const { service, readLines } = makeService({}, 3_600_999);
    service.status = status;
    const response = ask(service, makeRequest("GET /health"));
    const body = `{"status":"${status}","timestamp":"${NOON}","uptime_seconds":3600}\n`;
    assertEquals([response.status, await response.text()], [code, body]);
    assertEquals((await readLines())[0].level, code === 200 ? "debug" : "error");
  });

  Deno.test(`handle() says in every answer whether the connection closes when ${status}`, () => {
    const { service } = makeService();
    service.status = status;
    const requests = ["GET /", "GET /health", "GET /nowhere", "PUT /", "HEAD /", "OPTIONS /"]
      .map((words) => makeRequest(words));
    requests.push(makeRequest("GET /", { accept: BROWSER }), makeRequest("GET /", { host: "a b" }));
    const answers = requests.map((request) => ask(service, request));
    answers.push(ask(interrupt(service, fail)));
    const statuses = answers.map(({ status }) => status).join(" ");
    assertEquals(statuses, `200 ${code} 404 405 200 204 200 400 500`);
    const expected = status === "draining" ? "close" : null;
    for (const { headers } of answers) assertEquals(headers.get("connection"), expected);
  });
}

Deno.test("handle() shows what the facts contain now, as JSON and on the page", async () => {
  const { service, time } = makeService();
  await ask(service).text(); // no part of it may be kept
  const system = { ...SYSTEM, new_fact: "of <system>" };
  const describe = () => ({ ...service.clock.describe(), other_fact: "of runtime" });
  const extended = { ...service, system, clock: { ...service.clock, describe } };
  for (const agent of ["1", "2"]) {
    time.uptime++;
    const read = (accept: string) =>
      ask(extended, makeRequest("GET /", { accept, "user-agent": agent })).text();
    const { system, runtime, request } = JSON.parse(await read("*/*"));
    assertEquals([system, runtime], [extended.system, describe()]);
    assertEquals([runtime.current_time.slice(-5), request.user_agent], [`.00${agent}Z`, agent]);
    const page = await read("text/html");
    assertMatch(page, /<dt>New fact<\/dt><dd>of &#60;system&#62;<\/dd>/);
    assertMatch(page, /<dt>Other fact<\/dt><dd>of runtime<\/dd>/);
  }
});

/** Status and level of requests. Deno hands `OPTIONS *` over as `OPTIONS /*`. */
const ROUTING: [number, string, string[]][] = [
  [200, "info", ["GET /", "GET /?a=/health", "GET ?a"]],
  [200, "debug", ["GET /health", "GET /health?", "HEAD /health"]],
  [204, "info", ["OPTIONS /", "OPTIONS /*"]],
  [204, "debug", ["OPTIONS /health"]],
  [404, "info", ["GET /*", "GET /health/", "GET /Health", "GET //health", "GET /%2e%2e/health"]],
  [404, "info", ["GET /%68ealth", "GET /x/../health", "GET /healthz", "OPTIONS /x*", "PUT /x"]],
  [405, "info", ["POST /", "PUT /health", "PATCH /", "DELETE /", "TRACE /", "CONNECT /", "get /"]],
];

for (const [status, level, request] of ROUTING.flatMap(spread)) {
  Deno.test(`handle() answers ${request} with ${status}, and logs it at ${level}`, async () => {
    const accept = status === 200 ? "*/*" : BROWSER; // errors are JSON for everybody
    const answer = await exchange(makeRequest(request, { accept }));
    const [method, target = ""] = request.split(" ");
    assertEquals(answer.line, {
      ...{ time: NOON, level, msg: "request", method, path: target.replace(/\?.*/, "") || "/" },
      ...{ status, duration_ms: 0, client_ip: "192.0.2.1", user_agent: "unknown" },
    });
    assertEquals([answer.status, answer.body], [status, BODIES[status] ?? answer.body]);
    if (status !== 200) {
      assertEquals(answer.headers, {
        ...COMMON,
        ...(status !== 204 && { "content-type": TYPES.json }),
        ...(status !== 404 && { allow: "GET, HEAD, OPTIONS" }),
      });
    }
  });
}

/** A row for each item of the list that ends this row. */
function spread<Key, Value, Item>([key, value, items]: readonly [Key, Value, readonly Item[]]) {
  return items.map((item) => [key, value, item] as const);
}

/** What `GET /` is by Accept; one of 1,000 characters does not count. */
const ACCEPTS: ["json" | "html", string, (string | undefined)[]][] = [
  ["html", "preferred", [BROWSER, "text/html", "text/*", "application/json;q=0.5, text/html"]],
  ["html", "999 characters", [`text/html, x/${"y".repeat(999 - 13)}`]],
  ["json", "1000 characters", [`text/html, x/${"y".repeat(1000 - 13)}`]],
  ["json", "preferred", ["application/json", "text/html;q=0.5, application/json"]],
  ["json", "equal", ["*/*", "application/*, text/html;q=0.9", undefined, ""]],
  ["json", "no HTML", ["text/html;q=0", "image/png", "nonsense"]],
];

for (const [type, why, accept] of ACCEPTS.flatMap(spread)) {
  Deno.test(`handle() answers GET / by ${type}, ${why}: ${accept?.slice(0, 50)}`, async () => {
    const request = makeRequest("GET /", accept === undefined ? {} : { accept });
    const { headers, body } = await exchange(request);
    const expected = { ...COMMON, "content-type": TYPES[type], vary: "accept" };
    assertEquals({ ...headers, ...expected }, headers);
    assertMatch(body, type === "json" ? /^\{.*\}\n$/ : /^<!doctype html>/);
  });
}

for (
  const [path, headers] of [
    ["/", { "user-agent": "\xe9\xe9" }], // two bytes each in UTF-8
    ["/", { "user-agent": "\xe9\xe9", accept: "text/html" }],
    ["/health", {}],
    ["/nowhere", {}],
    ["/", { host: "a b" }],
  ] as const
) {
  Deno.test(`handle() gives HEAD ${path} what GET gets: ${Object.values(headers)}`, async () => {
    const { service } = makeService();
    const got = ask(service, makeRequest(`GET ${path}`, headers));
    const head = ask(service, makeRequest(`HEAD ${path}`, headers));
    const length = String((await got.bytes()).length);
    assertEquals([head.status, head.body], [got.status, null]);
    assertEquals([...head.headers], [...got.headers, ["content-length", length]].toSorted());
  });
}

const GOOD_HOSTS = "x x:80 x:65535 x:0 x: %41 a%1f xn--caf-dma.example a_b a-b.c~d [::1] " +
  "[::1]:5000 [2001:DB8::7] [::ffff:192.0.2.7]";
const BAD_HOSTS = [
  ..."x/health? x? x# x/health %41/x user@x user:password@x http://x \\x x<y \xe9 a%1".split(" "),
  ..."a%zz a% ::1 :80 x:80:80 x:port x:99999 x:65536 x:123456 [::1 [::1]x [::1]:99999".split(" "),
  ...["[zz]", "[:::::]", "[]", "a b", ""],
];

for (const host of GOOD_HOSTS.split(" ")) {
  Deno.test(`handle() answers 200 to Host: ${host}`, async () => {
    assertEquals((await exchange(makeRequest("GET /", { host }))).status, 200);
  });
}

for (const host of BAD_HOSTS) {
  Deno.test(`handle() answers 400 to Host: ${host}, whatever is asked`, async () => {
    const { service } = makeService();
    for (const words of ["GET /", "GET /health", "GET /nowhere", "PUT /", "OPTIONS /"]) {
      const response = ask(service, makeRequest(words, { host }));
      assertEquals([response.status, await response.text()], [400, BODIES[400]], words);
    }
  });
}

/** Proxies, the address that is shown, and X-Forwarded-For. The peer is 192.0.2.1. */
const FORWARDED: [number, string, string[]][] = [
  [0, "192.0.2.1", ["203.0.113.7"]],
  [1, "203.0.113.7", ["203.0.113.7", "198.51.100.9, 203.0.113.7"]],
  [2, "198.51.100.9", ["198.51.100.9, 203.0.113.7", "x, 198.51.100.9:1 ,203.0.113.7:2"]],
  [2, "192.0.2.1", ["203.0.113.7", "203.0.113.7, , 198.51.100.9"]], // an empty element counts
  [2, "203.0.113.7", [`203.0.113.7,${"x".repeat(1000 - 12)}`]],
  [2, "192.0.2.1", [`203.0.113.7,${"x".repeat(1001 - 12)}`]], // 1,000 characters count
  [16, "192.0.2.1", [",".repeat(60_000)]],
  // one spelling of one address, without port
  [1, "203.0.113.7", ["203.0.113.7:5", "203.0.113.7:54321", "::FFFF:203.0.113.7"]],
  [1, "2001:db8::7", ["2001:db8::7", "2001:0DB8:0000:0:0000:0000:0000:0007", "[2001:db8::7]"]],
  [1, "2001:db8::7", ["[2001:db8::7]:443", "[2001:DB8::0:7]:443"]],
  [1, "192.0.2.7", ["::ffff:c000:207", "0:0:0:0:0:ffff:c000:0207", "[::ffff:192.0.2.7]:80"]],
  [1, "0.0.0.0", ["::ffff:0:0"]],
  [1, "255.255.255.255", ["::ffff:ffff:ffff"]],
  [1, "::1", ["::1"]],
  // no address
  [1, "192.0.2.1", ["", "198.51.100.9, garbage", "unknown, ", "203.0.113.7, ", ",".repeat(60_000)]],
  [1, "192.0.2.1", ["203.0.113.7:", "203.0.113.7:123456", "203.0.113.7:http", "203.0.113.256"]],
  [1, "192.0.2.1", ["203.0.113", "203.0.113.7.8", "203..113.7", "203.0.113.007", "0xcb.0.113.7"]],
  [1, "192.0.2.1", ["[203.0.113.7]:80", "[2001:db8::7", "[2001:db8::7]x", "2001:db8::7::1"]],
  [1, "192.0.2.1", ["2001:db8::7%eth0", "12345::", "::1]/["]],
];

for (const [proxies, expected, forwarded] of FORWARDED.flatMap(spread)) {
  const header = `X-Forwarded-For: ${forwarded.slice(0, 40)}`;
  Deno.test(`handle() sees ${expected} through ${proxies} proxies and ${header}`, async () => {
    const request = makeRequest("GET /", { "x-forwarded-for": forwarded });
    const { body, line } = await exchange(request, { TRUST_PROXY: proxies });
    assertEquals([JSON.parse(body).request.client_ip, line.client_ip], [expected, expected]);
  });
}

Deno.test("handle() shows a peer by the one spelling of its address", async () => {
  const read = async (peer: string) => (await exchange(makeRequest(), {}, peer)).line.client_ip;
  assertEquals(await read("::ffff:192.0.2.1"), "192.0.2.1"); // of a dual-stack socket
  assertEquals(await read("2001:DB8:0::1"), "2001:db8::1");
});

for (const length of [0, 1000, 1001, 60_000]) {
  Deno.test(`handle() logs and shows at most 1,000 of ${length} characters`, async () => {
    const [method = "", path = "", agent = ""] = ["M", "/", "a"].map((text) => text.repeat(length));
    const { line } = await exchange(makeRequest(`${method} ${path}`, { "user-agent": agent }));
    assertEquals([line.method, line.path], [method.slice(0, 1000), path.slice(0, 1000) || "/"]);
    const { body } = await exchange(makeRequest("GET /", { "user-agent": agent }));
    const user_agent = agent.slice(0, 1000) || "unknown";
    assertEquals([line.user_agent, JSON.parse(body).request.user_agent], [user_agent, user_agent]);
  });
}

Deno.test("handle() answers 500 with nothing of the cause, which goes to the log", async () => {
  const { service, readLines } = makeService();
  const response = ask(interrupt(service, fail));
  assertEquals([response.status, await response.text()], [500, BODIES[500]]);
  assertEquals(Object.fromEntries(response.headers), { ...COMMON, "content-type": TYPES.json });
  const [{ level, status, error }] = await readLines();
  assertEquals([level, status], ["error", 500]);
  assertMatch(error, /the cause\n +at /, "with its stack");
});

// ---- Logs ----

type Sink = (bytes: Uint8Array) => number | Promise<number>;

const takeAll: Sink = (bytes) => bytes.length;

/** A logger, at noon where no clock is given, and what it has written. */
function makeLogger(
  sink = takeAll,
  config: Partial<Config> = {},
  clock = createClock(() => Date.parse(NOON), () => 0),
) {
  const decoder = new TextDecoder();
  let text = "";
  const log = createLogger({ ...DEFAULTS, ...config }, clock, async (bytes) => {
    const length = await sink(bytes);
    text += decoder.decode(bytes.subarray(0, length), { stream: true });
    return length;
  });
  const readText = async (milliseconds = 20_000) => {
    await waitFor(log.flush(milliseconds), "the end of a flush");
    return text;
  };
  const readLines = async () =>
    (await readText()).split("\n").slice(0, -1).map((line) => JSON.parse(line));
  return { log, readText, readLines };
}

function range(begin: number, end: number): number[] {
  return Array.from({ length: end - begin }, (_, n) => begin + n);
}

/** Writes a line for each number, of some 570 bytes. */
function fill(log: Service["log"], begin: number, end: number) {
  for (const n of range(begin, end)) log.write("info", "x".repeat(500), { n });
}

for (const LOG_FORMAT of ["json", "text"] as const) {
  Deno.test(`createLogger() writes the agreed keys in their order, as ${LOG_FORMAT}`, async () => {
    const { log, readText } = makeLogger(takeAll, { LOG_FORMAT });
    log.write("warn", "a message", { n: 1, s: 'a "b"' });
    const json = `{"time":"${NOON}","level":"warn","msg":"a message","n":1,"s":"a \\"b\\""}\n`;
    const text = `${NOON} WARN  a message n=1 s="a \\"b\\""\n`;
    assertEquals(await readText(500), { json, text }[LOG_FORMAT]); // it comes soon
  });

  Deno.test(`createLogger() escapes control and format characters, as ${LOG_FORMAT}`, async () => {
    const blocks = range(0, 0x220).filter((n) => n !== 0xd800 / 0x800); // these are surrogates
    const texts = blocks.map((n) => String.fromCodePoint(...range(n * 0x800, (n + 1) * 0x800)));
    for (const value of [texts[0]!.slice(0, 128), texts.join("")]) {
      const { log, readText } = makeLogger(takeAll, { LOG_FORMAT });
      log.write("info", "m", { value });
      const json = /value"?[:=](".*")}?\n$/s.exec(await readText())![1]!;
      assert(JSON.parse(json) === value, "the value");
      const plain = json.slice(1, -1).replaceAll(/\\u[\da-f]{4}|\\[bfnrt"\\]/g, "");
      assert(plain === value.replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029"\\]/gu, ""), "the rest stays");
    }
  });
}

Deno.test("createLogger() quotes in text what would not stand as one value", async () => {
  const { log, readText } = makeLogger(takeAll, { LOG_FORMAT: "text" });
  log.write("info", "m", ["/x.y-z:1", 1.5, "a b", "a=b", "", '"', "\\", "a,b", "\n"]);
  const fields = String.raw`0=/x.y-z:1 1=1.5 2="a b" 3="a=b" 4="" 5="\"" 6="\\" 7="a,b" 8="\n"`;
  assertEquals(await readText(), `${NOON} INFO  m ${fields}\n`);
});

const LEVELS = ["debug", "info", "warn", "error"] as const;

for (const [index, LOG_LEVEL] of LEVELS.entries()) {
  Deno.test(`createLogger() writes from ${LOG_LEVEL} on`, async () => {
    const { log, readLines } = makeLogger(takeAll, { LOG_LEVEL });
    for (const level of LEVELS) log.write(level, "m");
    assertEquals((await readLines()).map(({ level }) => level), LEVELS.slice(index));
    assertEquals(LEVELS.filter(log.isEnabled), LEVELS.slice(index));
  });
}

Deno.test("createLogger() writes whole lines, and more at once where much was taken", async () => {
  let writes: Uint8Array[] = [];
  let failures = 0;
  const { log, readText, readLines } = makeLogger((bytes) => {
    if (failures-- > 0) throw new Deno.errors.WouldBlock();
    return writes.push(bytes) && bytes.length;
  });
  const isSmall = ({ length }: Uint8Array) => length <= 4096;
  const isWhole = (bytes: Uint8Array) => bytes.at(-1) === 10;
  log.write("info", "x".repeat(10_000)); // more than a pipe takes whole
  fill(log, 1, 1000); // some 570 kB
  await readText();
  assertAlmostEquals(writes.filter(isSmall).length * 4096, 128 * 1024, 20_000);
  assert(writes.length < 60 && writes.slice(2).every(isWhole));
  failures = 1;
  fill(log, 1000, 1001);
  await readText();
  writes = [];
  fill(log, 1001, 2000);
  assertEquals((await readLines()).slice(1).map(({ n }) => n), range(1, 2000));
  assert(writes.every((bytes) => isSmall(bytes) && isWhole(bytes)));
});

for (const reader of ["does not read", "is gone"]) {
  Deno.test(`createLogger() counts what it drops while its reader ${reader}`, async () => {
    const back = Promise.withResolvers<void>();
    let isGone = reader === "is gone";
    let tries = 0;
    const { log, readText, readLines } = makeLogger(async (bytes) => {
      const take = [5, 3000, 0, 4096][++tries % 4]!; // a pipe may take less than it is offered
      if (isGone && tries < 100 || tries % 100 === 7) throw new Deno.errors.BrokenPipe();
      if (!isGone) await back.promise;
      return Math.min(bytes.length, take);
    });
    fill(log, 0, 5000);
    assertEquals(await readText(300), "", "what is taken at the 100th try");
    fill(log, 5000, 10_000);
    isGone = false;
    back.resolve();
    assertAlmostEquals((await readText()).length, 1024 * 1024, 2000); // what waits
    log.write("info", "again");
    const lines = await readLines();
    assertEquals(lines.pop().msg, "again");
    const notices = lines.filter(({ dropped }) => dropped !== undefined);
    for (const { msg, level } of notices) assertEquals([msg, level], ["log lines dropped", "warn"]);
    const seen = lines.flatMap(({ n }) => n ?? []);
    assertEquals(seen, range(0, seen.length));
    assertEquals(seen.length + notices.reduce((sum, { dropped }) => sum + dropped, 0), 10_000);
  });
}

// ---- Command line ----

const USAGE = "Usage: devops-info-service [--health | --version | --help]";
const VERSION = `devops-info-service ${project.version}`;

/** Runs the command, and gives its exit code and what it wrote. */
async function runMain(args: string[], get: (name: string) => string | undefined, sink = takeAll) {
  const written = { stdout: "", stderr: "" };
  const writer = (name: "stdout" | "stderr") => ({
    isTerminal: () => false,
    async write(bytes: Uint8Array) {
      written[name] += new TextDecoder().decode(bytes);
      return await sink(bytes);
    },
  });
  const end = main(args, { env: { get }, stdout: writer("stdout"), stderr: writer("stderr") });
  return { code: await waitFor(end, "the end: it serves"), ...written };
}

Deno.test("main() prints version and help, whatever the environment is", async () => {
  assertEquals(await runMain(["--version"], fail), { code: 0, stdout: `${VERSION}\n`, stderr: "" });
  const { code, stdout, stderr } = await runMain(["--help"], fail);
  assertEquals([code, stderr], [0, ""]);
  const [head, usage, environment, ...sections] = stdout.split("\n\n").map((section) => {
    const lines = section.trimEnd().split("\n");
    return lines.map((line) => line.trim().split(/ {2,}/)[0]);
  });
  assertEquals(head, [`${VERSION}: DevOps course info service`]);
  assertEquals(usage, [USAGE, "no argument", "--health", "--version", "--help"]);
  const describe = (fallback: unknown, allowed: string) => `${allowed} (default ${fallback})`;
  assertEquals(environment, [
    "Environment:",
    ...VARIABLES.flatMap(([name, ...rest]) => [name, describe(rest[0], describeAllowed(rest[1]))]),
  ]);
  assertEquals(sections, [
    ["Signals:", "SIGTERM, SIGINT", "SIGUSR2"],
    ["Exit codes:", "0", "1", "2", "130, 143"],
  ]);
});

Deno.test("main() exits even if what it writes fails or hangs", async () => {
  assertEquals((await runMain(["--version"], fail, fail)).code, 0);
  assertEquals((await runMain(["--version"], fail, () => new Promise(() => {}))).code, 0);
});

for (const args of [["--nonsense"], ["--help", "--version"], ["--health", "x"], [""], ["\n"]]) {
  Deno.test(`main() refuses the arguments ${JSON.stringify(args)} on one line`, async () => {
    const stderr = `${USAGE}, not ${JSON.stringify(args.join(" "))}\n`;
    assertEquals(await runMain(args, fail), { code: 2, stdout: "", stderr });
  });
}

// ---- The black box ----

/** Addresses to listen on, and which of them a client then reaches. */
const HOSTS = ["0.0.0.0 127.0.0.1", ":: 127.0.0.1 ::1", "::1 ::1", "localhost localhost"];

/** What the service may do, and what Deno must refuse it. */
const ALLOWED = ["Deno.env.get('PORT')", "Deno.hostname()", "Deno.osRelease()"];
const REFUSED = [
  ...["Deno.env.get('HOME')", "Deno.networkInterfaces()", "Deno.readTextFileSync('main.ts')"],
  ...["Deno.writeTextFileSync('dist', '')", "new Deno.Command('true').outputSync()"],
  ...["Deno.dlopen('libc.so.6', {})", "Deno.connect({ hostname: '127.0.0.2', port: 1 })"],
  ...["fetch('http://192.0.2.1')", "import(`https://deno.land/${1}.ts`)"],
];

Deno.test("source: Deno refuses the service what it does not need", async () => {
  const command = (await SOURCE.command({}, "", {})).with(-1, "-");
  const all = [...ALLOWED, ...REFUSED];
  const report = ".then(() => 'allowed', (error) => error.message).then(console.log)";
  const program = all.map((code) => `await (async () => ${code})()${report}`);
  const { stdout } = await runProgram(command, { input: program.join("\n") });
  const results = stdout.replaceAll(/^Requires .* access.*$/gm, "refused").split("\n");
  assertEquals(results.map((result, n) => `${result}: ${all[n]}`), [
    ...ALLOWED.map((code) => `allowed: ${code}`),
    ...REFUSED.map((code) => `refused: ${code}`),
    ": undefined",
  ]);
});

Deno.test("source: a missing permission: one line, exit 2", async () => {
  const form = wrapForm(SOURCE, (command) => command.toSpliced(2, 0, "--deny-env=PORT"));
  await using service = await launch(form);
  assertEquals(await service.waitForCode(), 2);
  assertMatch(service.stderr, /^.*"PORT".*\n$/);
});

for (const form of CONTRACT_FORMS) {
  const formSpec = bindSpec(form);

  Deno.test(formSpec("GET / says where it runs, and since when", async () => {
    const { port } = await share(form);
    const read = async () => JSON.parse((await sendRaw(port, formatRequest("/"))).body);
    const { system, runtime } = await read();
    const platforms: Record<string, string> = { linux: "Linux", darwin: "Darwin" };
    assertEquals(system, {
      hostname: Deno.hostname(),
      platform: platforms[Deno.build.os],
      platform_version: Deno.osRelease(),
      architecture: form.isEmulated ? "aarch64" : Deno.build.arch,
      cpu_count: navigator.hardwareConcurrency,
      deno_version: form === SOURCE ? Deno.version.deno : system.deno_version,
    });
    const begun = Date.parse(runtime.current_time);
    assertAlmostEquals(begun, Date.now(), 60_000);
    const { current_time, uptime_seconds } = await waitUntil(
      "the uptime to grow",
      async () => (await read()).runtime,
      ({ uptime_seconds }) => uptime_seconds > runtime.uptime_seconds,
    );
    const passed = (Date.parse(current_time) - begun) / 1000;
    assertAlmostEquals(uptime_seconds - runtime.uptime_seconds, passed, 1);
  }));

  for (
    const [request, expected, parts] of [
      ...[["GET /health?x", 200], ["OPTIONS *", 204], ["get /", 405], ["BREW /", 405]] as const,
      ...[["GET //health", 404], ["GET /%2e%2e/health", 404], ["GET /x/../health", 404]] as const,
      // HTTP/1 alone
      ["GET http://other/health", 200, { host: "Host: x\r\n" }],
      ["GET http://other/health", 400, { host: "Host: x?\r\n" }],
      ["GET /nowhere", 400, { host: "Host: x/health?\r\n" }],
      ["GET /health", 200, { host: "" }], // Deno does not say which HTTP/1 this is
      ["GET /health", 200, { host: "", version: "HTTP/1.0" }],
    ] as const
  ) {
    const how = parts ? Deno.inspect(parts) : "by HTTP/1.1 and HTTP/2";
    Deno.test(formSpec(`${request} gets ${expected} ${how}`, async () => {
      const { port } = await share(form);
      const [method = "", path = ""] = request.split(" ");
      const answers = [await sendRaw(port, formatRequest(path, { method, ...parts }))];
      if (!parts) answers.push(await sendHttp2(port, { ":method": method, ":path": path }));
      for (const { status, headers, body } of answers) {
        assertEquals([status, body], [expected, BODIES[expected] ?? body]);
        assertEquals(body.includes("healthy"), expected === 200);
        assertEquals([headers.get("cache-control"), headers.get("connection")], ["no-store", null]);
      }
    }));
  }

  Deno.test(formSpec("HEAD gets the length, and no content, by every HTTP", async () => {
    const { port } = await share(form);
    const length = String(BODIES[404]!.length);
    const head = new RegExp(
      `^HTTP/1.[01] 404 [^]*?\r\ncontent-length: ${length}\r\n[^]*?\r\n\r\n`,
      "i",
    );
    for (const version of ["HTTP/1.0", "HTTP/1.1"]) {
      using connection = await connect(port);
      const next = version === "HTTP/1.1" ? formatRequest("/health", { version: "HTTP/1.0" }) : "";
      await connection.send(formatRequest("/nowhere", { method: "HEAD", version }) + next);
      const rest = (await connection.receiveAll()).replace(head, "");
      assertMatch(rest, next ? /^HTTP\/1\.0 200 .*"healthy"/s : /^$/); // the pipelined answer
    }
    const target = [[":scheme", "http"], [":authority", "x"], [":path", "/nowhere"]] as const;
    const got = await sendFrames(port, [[":method", "GET"], ...target]);
    const frames = await sendFrames(port, [[":method", "HEAD"], ...target]);
    assertEquals([got.includes('{"error'), frames.includes('{"error')], [true, false]);
    const { status, headers } = await sendHttp2(port, { ":method": "HEAD", ":path": "/nowhere" });
    assertEquals([status, headers.get("content-length")], [404, length]);
  }));

  Deno.test(formSpec("an :authority of HTTP/2 reaches no other route", async () => {
    const { port } = await share(form);
    const others = { "/": '"healthy"', "/health": '"endpoints"', "/x": '{"s' };
    for (const authority of BAD_HOSTS) {
      for (const [path, other] of Object.entries(others)) {
        const target = [[":authority", authority], [":path", path]] as const;
        const received = await sendFrames(port, [
          [":method", "GET"],
          [":scheme", "http"],
          ...target,
        ]);
        assert(!received.includes(other), `${path} of ${authority}: ${received}`);
      }
    }
    assertEquals((await sendRaw(port, formatRequest("/health"))).status, 200);
  }));

  Deno.test(formSpec("TRUST_PROXY counts over all fields; empty variables are unset", async () => {
    await using service = await start(form, { TRUST_PROXY: "2", LOG_LEVEL: "", LOG_FORMAT: "" });
    const fields = "X-Forwarded-For: 198.51.100.9\r\nX-Forwarded-For: 203.0.113.7\r\n";
    const { body } = await sendRaw(service.port, formatRequest("/", { fields }));
    assertEquals(JSON.parse(body).request.client_ip, "198.51.100.9");
    await service.waitForOutput(/"level":"info","msg":"request".*"client_ip":"198.51.100.9"/);
  }));

  const hosts = HOSTS.map((row) => row.split(" "));
  for (const [HOST = "", ...addresses] of form.isEmulated ? hosts.slice(0, 1) : hosts) {
    Deno.test(formSpec(`HOST=${HOST} takes ${addresses} and shows it so`, async () => {
      await using service = await start(form, { HOST });
      for (const address of addresses) {
        const { body } = await sendRaw(service.port, formatRequest("/"), address);
        const { client_ip } = JSON.parse(body).request;
        assertEquals(client_ip, address === "localhost" ? service.lines[0]!.address : address);
      }
    }, HOST.includes("::") && !HAS_IPV6 && "this machine has no IPv6"));
  }

  for (const args of form.isEmulated ? [[]] : [[], ["--health"]]) {
    Deno.test(formSpec(`bad variables ${args}: a line each, exit 2, and nothing else`, async () => {
      const env = { LOG_LEVEL: "a\nb\x9b", DENO_SERVE_ADDRESS: "b", DENO_TRUST_PROXY_HEADERS: "1" };
      await using service = await launch(form, { ...env, PORT: "http" }, args);
      assertEquals([await service.waitForCode(), service.stdout], [2, ""]);
      assertEquals(service.stderr.trimEnd().split("\n"), [
        'PORT="http": allowed is a whole number from 0 to 65535',
        'LOG_LEVEL="a\\nb\\u009b": allowed is debug, info, warn, error',
        'DENO_SERVE_ADDRESS="b": not allowed, use HOST and PORT instead',
        'DENO_TRUST_PROXY_HEADERS="1": not allowed, use TRUST_PROXY instead',
      ]);
    }));
  }

  Deno.test(formSpec("a value that is not Unicode: one line, exit 2", async () => {
    const script = `PORT=$(printf '\\377') exec "$0" "$@"`;
    const odd = wrapForm(form, (command) => ["sh", "-c", script, ...command]);
    await using service = await launch(odd);
    assertEquals([await service.waitForCode(), service.stdout], [2, ""]);
    assertEquals(service.stderr, 'PORT="\ufffd": allowed is a whole number from 0 to 65535\n');
  }, form.isImage && "Docker takes no such value"));

  Deno.test(formSpec("a port in use: one line, exit 1", async () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const PORT = String(listener.addr.port);
    await using service = await launch(form, { HOST: "127.0.0.1", PORT });
    assertEquals([await service.waitForCode(), service.stdout], [1, ""]);
    assertMatch(service.stderr, /^cannot listen on 127.0.0.1 port \d+: .*in use.*\n$/);
  }));

  for (const [argument, code] of [["--version", 0], ["--help", 0], ["--nonsense", 2]] as const) {
    Deno.test(formSpec(`${argument} exits with ${code}, whatever the variables are`, async () => {
      await using service = await launch(form, { PORT: "bad" }, [argument]);
      assertEquals(await service.waitForCode(), code);
      assertMatch(service.stdout, code === 0 ? /^devops-info-service \d/ : /^$/);
      assertMatch(service.stderr, code === 0 ? /^$/ : /^Usage: .*, not "--nonsense"\n$/);
    }));
  }

  Deno.test(formSpec("nothing is compressed", async (context) => {
    await using service = await start(form, { DENO_SERVE_AUTOMATIC_COMPRESSION: "1" });
    const { system } = JSON.parse((await sendRaw(service.port, formatRequest("/"))).body);
    if (system.deno_version.startsWith("2.7.")) return await leaveOut(context, "Deno 2.7 does");
    const parts = { version: "HTTP/1.0", fields: "Accept-Encoding: gzip\r\n" };
    const { headers } = await sendRaw(service.port, formatRequest("/", parts));
    assertEquals([headers.get("content-encoding"), headers.get("vary")], [null, "accept"]);
  }));

  Deno.test(formSpec("nothing is written to disk", async () => {
    const folder = makeTempPath("home");
    await Deno.mkdir(folder);
    const env = { TMPDIR: folder, HOME: folder, XDG_CACHE_HOME: folder };
    await using service = await start(form, env);
    await sendRaw(service.port, formatRequest("/"));
    service.kill("SIGTERM");
    assertEquals([await service.waitForCode(), [...Deno.readDirSync(folder)]], [0, []]);
  }, form.name !== "executable" && "Deno caches the source, and an image is read-only"));
}
