/**
 * The contract of `main.ts`: its functions with every table, in this process; then the black box,
 * which proves each mechanism once for each form of the service.
 */
import {
  assert,
  assertAlmostEquals,
  assertArrayIncludes,
  assertEquals,
  assertMatch,
  assertObjectMatch,
  assertThrows,
} from "@std/assert";
import { FORMS, SOURCE, wrapForm } from "./.test/forms.ts";
import { makeTempPath, runProgram } from "./.test/programs.ts";
import { connect, formatRequest, HAS_IPV6, sendHttp2, sendRaw } from "./.test/requests.ts";
import { bindSpec, DEFAULTS, launch, share, start } from "./.test/run.ts";
import { waitFor, waitUntil } from "./.test/waiting.ts";
import { type Config, createClock, createLogger, handle, main, parseConfig } from "./main.ts";
import type { Service } from "./main.ts";
import project from "./deno.json" with { type: "json" };

// ---- Configuration and time ----

/** What each variable is by default, and what is allowed: these words, or numbers up to this one. */
const VARIABLES: Partial<Record<keyof Config, { fallback: unknown; allowed: string[] | number }>> =
  {
    HOST: { fallback: "0.0.0.0", allowed: ["0.0.0.0", "::", "127.0.0.1", "::1", "localhost"] },
    PORT: { fallback: 5000, allowed: 65535 },
    LOG_LEVEL: { fallback: "info", allowed: ["debug", "info", "warn", "error"] },
    LOG_FORMAT: { fallback: "json", allowed: ["json", "text"] },
    TRUST_PROXY: { fallback: 0, allowed: 16 },
    DRAIN_SECONDS: { fallback: 0, allowed: 300 },
    SHUTDOWN_SECONDS: { fallback: 8, allowed: 300 },
  };

function describeAllowed(allowed: string[] | number): string {
  return typeof allowed === "number" ? `a whole number from 0 to ${allowed}` : allowed.join(", ");
}

function parse(env: Record<string, string>, isTerminal = false): Config {
  return parseConfig(new Map(Object.entries(env)), isTerminal);
}

Deno.test("parseConfig() takes an empty variable as unset, and on a terminal has text", () => {
  const names = [...Object.keys(DEFAULTS), "DENO_SERVE_ADDRESS", "DENO_TRUST_PROXY_HEADERS"];
  assertEquals(parse(Object.fromEntries(names.map((name) => [name, ""]))), DEFAULTS);
  assertEquals(parse({}, true), { ...DEFAULTS, LOG_FORMAT: "text" });
  assertEquals(parse({ LOG_FORMAT: "json" }, true), DEFAULTS);
});

for (const [name, { fallback, allowed }] of Object.entries(VARIABLES)) {
  Deno.test(`parseConfig() takes what is allowed for ${name}, and says it of all else`, () => {
    const read = (text: string) =>
      Object.entries(parse({ [name]: text })).find(([n]) => n === name);
    assertEquals(read(""), [name, fallback]);
    if (typeof allowed === "number") {
      for (const n of [0, 1, allowed]) assertEquals(read(`${n}`), [name, n]);
    } else {
      for (const word of allowed) {
        assertEquals([read(word), read(word.toUpperCase())], [[name, word], [name, word]]);
      }
    }
    const bad = typeof allowed === "number"
      ? [`${allowed + 1}`, "-1", "1.5", "0x1", " 1", "1e1", "000001"]
      : ["other", "0", ` ${allowed[0]}`, `${allowed[0]}x`, "warning", "10.0.0.1"];
    for (const value of bad) {
      const { message } = assertThrows(() => parse({ [name]: value }), RangeError);
      assertEquals(message, `${name}="${value}": allowed is ${describeAllowed(allowed)}`);
    }
  });
}

const NOON = "2026-01-07T12:00:00.000Z";

for (
  const { uptime, uptime_seconds, uptime_human } of [
    { uptime: 0, uptime_seconds: 0, uptime_human: "0 hours, 0 minutes" },
    { uptime: 59_999.9, uptime_seconds: 59, uptime_human: "0 hours, 0 minutes" },
    { uptime: 60_000, uptime_seconds: 60, uptime_human: "0 hours, 1 minute" },
    { uptime: 3_660_000, uptime_seconds: 3660, uptime_human: "1 hour, 1 minute" },
    { uptime: 7_199_999, uptime_seconds: 7199, uptime_human: "1 hour, 59 minutes" },
    { uptime: 49 * 3_600_000, uptime_seconds: 176_400, uptime_human: "49 hours, 0 minutes" },
  ]
) {
  Deno.test(`createClock() says an uptime of ${uptime} ms as ${uptime_human}`, () => {
    const { describe, monotonic } = createClock(() => Date.parse(NOON), () => uptime);
    const facts = { uptime_seconds, uptime_human, current_time: NOON, timezone: "UTC" };
    assertObjectMatch(describe(), facts);
    assertObjectMatch(JSON.parse(describe().json), facts);
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

const SYSTEM = { hostname: "my-laptop", platform: "Linux", cpu_count: 8 };

/** A service at noon that has run for so many milliseconds, and the log lines it writes. */
function makeService(config: Partial<Config> = {}, uptime = 0) {
  const time = { uptime };
  const clock = createClock(() => Date.parse(NOON) + time.uptime - uptime, () => time.uptime);
  const { log, readLines } = makeLogger(takeAll, { LOG_LEVEL: "debug", ...config }, clock);
  const systemJson = JSON.stringify(SYSTEM);
  const service: Service = {
    config: { ...DEFAULTS, ...config },
    systemJson,
    clock,
    log,
    status: "healthy",
  };
  return { service, time, readLines };
}

/** The same service, where this happens while it answers `GET /`. */
function interrupt(service: Service, happen: () => void): Service {
  const { systemJson } = service;
  return Object.defineProperty({ ...service }, "systemJson", {
    get: () => (happen(), systemJson),
  });
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

const PEER = "192.0.2.1";

function ask(service: Service, request = makeRequest(), hostname = PEER): Response {
  return handle(service, request, { remoteAddr: { hostname } });
}

/** Asks a new service, and gives its answer and the log line. */
async function exchange(request: Request, config: Partial<Config> = {}, peer = PEER) {
  const { service, readLines } = makeService(config);
  const response = ask(service, request, peer);
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

Deno.test("handle() answers GET / with these parts in this order, and logs when it ended", async () => {
  const { service, readLines, time } = makeService({}, 3_600_999);
  const busy = interrupt(service, () => time.uptime += 12.34567);
  const response = ask(busy, makeRequest("GET /?x", { "user-agent": "curl/8.5.0" }));
  const body = await response.text();
  const { service: about, system, runtime, request, endpoints } = JSON.parse(body);
  assertEquals(
    body,
    JSON.stringify({ service: about, system, runtime, request, endpoints }) + "\n",
  );
  assertObjectMatch(about, {
    name: "devops-info-service",
    version: project.version,
    description: "DevOps course info service",
    framework: "Deno.serve",
  });
  assertEquals(system, SYSTEM);
  assertEquals(runtime.uptime_human, "1 hour, 0 minutes");
  const known = { client_ip: PEER, user_agent: "curl/8.5.0", method: "GET", path: "/" };
  assertEquals(
    Object.entries(request).filter(([name]) => name in known),
    Object.entries(known),
  );
  assertArrayIncludes(endpoints, [
    { path: "/", method: "GET", description: "Service information" },
    { path: "/health", method: "GET", description: "Health check" },
  ]);
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
    assertEquals((await readLines())[0].level, code === 200 ? "debug" : "warn");
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
const ACCEPTS: Record<"html" | "json", (string | undefined)[]> = {
  html: [
    ...[BROWSER, "text/html", "Text/HTML", "text/html, */*", "application/json;q=0.5, text/html"],
    `text/html, x/${"y".repeat(999 - 13)}`,
  ],
  json: [
    ...["application/json", "text/html;q=0.5, application/json", "text/html;q=0", "image/png"],
    ...["*/*", "application/*, text/html;q=0.9", undefined, "", "nonsense"],
    ...["text/*", "text/plain, text/*, */*"], // whoever wants a page names text/html
    `text/html, x/${"y".repeat(1000 - 13)}`,
  ],
};

for (const type of ["html", "json"] as const) {
  for (const accept of ACCEPTS[type]) {
    Deno.test(`handle() answers GET / by ${type} to Accept: ${accept?.slice(0, 50)}`, async () => {
      const request = makeRequest("GET /", accept === undefined ? {} : { accept });
      const { headers, body } = await exchange(request);
      const expected = { ...COMMON, "content-type": TYPES[type], vary: "accept" };
      assertEquals({ ...headers, ...expected }, headers);
      assertMatch(body, type === "json" ? /^\{.*\}\n$/ : /^<!doctype html>/);
    });
  }
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

/** What has only characters of a host and a port; probers do send IPv6 without brackets. */
const GOOD_HOSTS = [
  ..."x x:80 x:0 x: %41 a%1f xn--caf-dma.example a_b a-b.c~d [::1] [::1]:5000".split(" "),
  ..."[2001:DB8::7] [::ffff:192.0.2.7] ::1 ::1:5000 :80".split(" "),
  "",
];
const BAD_HOSTS = [
  ..."x/health? x? x# x/health %41/x user@x user:password@x http://x \\x x<y \xe9".split(" "),
  "a b",
];

for (const host of GOOD_HOSTS) {
  Deno.test(`handle() answers 200 to Host: ${host}`, async () => {
    assertEquals((await exchange(makeRequest("GET /health", { host }))).status, 200);
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

/** The address that is shown, by the number of proxies and X-Forwarded-For. */
const FORWARDED = [
  { proxies: 0, shown: PEER, fields: ["203.0.113.7"] },
  { proxies: 1, shown: "203.0.113.7", fields: ["203.0.113.7", "198.51.100.9, 203.0.113.7"] },
  {
    proxies: 2,
    shown: "198.51.100.9",
    fields: ["198.51.100.9, 203.0.113.7", "x, 198.51.100.9:1 ,y"],
  },
  { proxies: 2, shown: PEER, fields: ["203.0.113.7", "203.0.113.7, , 198.51.100.9"] },
  // 1,000 characters count, and a longer field loses what may be cut
  { proxies: 2, shown: "203.0.113.7", fields: [`203.0.113.7,${"x".repeat(1000 - 12)}`] },
  { proxies: 1, shown: "203.0.113.7", fields: [`${"x".repeat(2000)}, 203.0.113.7`] },
  { proxies: 2, shown: PEER, fields: [`203.0.113.7,${"x".repeat(1001 - 12)}`] },
  { proxies: 16, shown: PEER, fields: [",".repeat(60_000)] },
  // as the proxy wrote it, but without port and brackets
  { proxies: 1, shown: "203.0.113.7", fields: ["203.0.113.7:54321", "::FFFF:203.0.113.7"] },
  {
    proxies: 1,
    shown: "2001:DB8::7",
    fields: ["2001:DB8::7", "[2001:DB8::7]", "[2001:DB8::7]:443"],
  },
  { proxies: 1, shown: "192.0.2.7", fields: ["[::ffff:192.0.2.7]:80"] },
  { proxies: 1, shown: "::1", fields: ["::1"] },
  // no address
  { proxies: 1, shown: PEER, fields: ["", "198.51.100.9, garbage", "unknown", "203.0.113.7, "] },
  { proxies: 1, shown: PEER, fields: ["203.0.113.7:", "203.0.113.7:http", "0xcb.0.113.7"] },
  { proxies: 1, shown: PEER, fields: ["[2001:db8::7", "[2001:db8::7]x", "2001:db8::7%eth0"] },
];

for (const { proxies, shown, fields } of FORWARDED) {
  for (const field of fields) {
    const header = `X-Forwarded-For: ${field.slice(0, 40)}`;
    Deno.test(`handle() sees ${shown} through ${proxies} proxies and ${header}`, async () => {
      const request = makeRequest("GET /", { "x-forwarded-for": field });
      const { body, line } = await exchange(request, { TRUST_PROXY: proxies });
      assertEquals([JSON.parse(body).request.client_ip, line.client_ip], [shown, shown]);
    });
  }
}

Deno.test("handle() shows IPv4 of a dual-stack socket as IPv4", async () => {
  const { line } = await exchange(makeRequest(), {}, "::ffff:192.0.2.1");
  assertEquals(line.client_ip, "192.0.2.1");
});

Deno.test("handle() logs X-Forwarded-For as it came, at LOG_LEVEL=debug alone", async () => {
  const field = `${"x".repeat(2000)}, 198.51.100.9`;
  const request = makeRequest("GET /", { "x-forwarded-for": field });
  const { line } = await exchange(request);
  assertEquals(line.forwarded_for, field.slice(-1000));
  for (
    const { line } of [
      await exchange(makeRequest()),
      await exchange(request, { LOG_LEVEL: "info" }),
    ]
  ) {
    assertEquals("forwarded_for" in line, false);
  }
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

// ---- Page ----

/** What a client sends that tries to end its element, or an attribute. */
const MARKUP = `"' onclick='</dd><script>alert("x")</script><style>* {} &lt; &#60;`;

function readPage(service: Service, words = "GET /"): Promise<string> {
  return ask(service, makeRequest(words, { accept: BROWSER, "user-agent": MARKUP })).text();
}

/** What the group of a pattern finds in HTML, as text. */
function findAll(html: string, pattern: RegExp): string[] {
  const decode = (_: string, code: string) => String.fromCharCode(Number(code));
  return Array.from(html.matchAll(pattern), ([, text]) => text!.replace(/&#(\d+);/g, decode));
}

/** The keys and the values of JSON, in their order; a list has no keys. */
function flatten(value: unknown): { keys: string[]; values: string[] } {
  if (!(value instanceof Object)) return { keys: [], values: [String(value)] };
  const parts = Object.entries(value).map(([key, value]) => ({ key, ...flatten(value) }));
  const isList = Array.isArray(value);
  return {
    keys: parts.flatMap(({ key, keys }) => isList ? keys : [key, ...keys]),
    values: parts.flatMap(({ values }) => values),
  };
}

Deno.test("the page shows what the JSON has, by its keys, and escapes it", async () => {
  const { service } = makeService();
  const html = await readPage(service);
  const { keys, values } = flatten(JSON.parse(await readPage(service, "GET /?format=json")));
  assert(values.includes(MARKUP));
  assertEquals(findAll(html, /<dt>([^<]*)<\/dt>/g), keys);
  assertEquals(findAll(html, /<dd>(?:<a [^<>]*>)?([^<>"']*)(?:<\/a>)?<\/dd>/g), values);
});

Deno.test("the page links to all routes, and to the JSON, below a proxy's prefix, too", async () => {
  const { service } = makeService();
  const { endpoints } = JSON.parse(await readPage(service, "GET /?format=json"));
  const links = findAll(await readPage(service), /<a href="(.*?)">/g)
    .map((link) => new URL(link, "http://x/prefix/").href.replace("http://x/prefix", ""));
  const paths = endpoints.map(({ path }: { path: string }) => path);
  assertEquals(new Set(links), new Set([...paths, "/?format=json"])); // one may come twice
});

for (const [status, mark] of Object.entries({ healthy: "✓", unhealthy: "✗", draining: "↓" })) {
  Deno.test(`the page tells in its title and banner that it is ${status}`, async () => {
    const { service } = makeService();
    const html = await readPage(Object.assign(service, { status }));
    assertMatch(html, new RegExp(`<title>${mark} devops-info-service: ${status}</title>`));
    assertMatch(html, new RegExp(`<strong>${mark} ${status}\\.</strong>`));
    const [icon = ""] = findAll(html, /<link rel="icon" href="(.*?)">/g);
    assertEquals(new URL(icon).hash, "", "it would end at a # of its color");
  });
}

Deno.test("the page may load its own style and nothing else", async () => {
  const { headers } = await exchange(makeRequest("GET /", { accept: BROWSER }));
  assertEquals(
    headers["content-security-policy"],
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; " +
      "form-action 'none'; frame-ancestors 'none'",
  );
  assertEquals(headers["referrer-policy"], "no-referrer");
});

const QUERIES = "format=json format=html format=jsonp format= format x=json xformat=json".split(
  " ",
);

for (const query of QUERIES) {
  const type = query === "format=json" ? "json" : "html";
  Deno.test(`handle() answers GET /?${query} by ${type} to a browser`, async () => {
    const request = makeRequest(`GET /?${query}`, { accept: BROWSER });
    const { status, headers, line } = await exchange(request);
    assertEquals([status, headers["content-type"], line.path], [200, TYPES[type], "/"]);
  });
}

// ---- Logs ----

type Sink = (bytes: Uint8Array) => number | Promise<number>;

const takeAll: Sink = (bytes) => bytes.length;
const loggers: Service["log"][] = [];

Deno.test.afterEach(async () => {
  for (const log of loggers.splice(0)) await log.flush(20_000); // leave no timer behind
});

/** A logger, at noon where no clock is given, and what it has written. */
function makeLogger(
  sink: Sink = takeAll,
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
  loggers.push(log);
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

Deno.test("createLogger() writes all at once, after a failure what a pipe takes whole", async () => {
  const sizes: number[] = [];
  let failures = 0;
  const { log, readLines } = makeLogger((bytes) => {
    if (failures-- > 0) throw new Deno.errors.WouldBlock();
    sizes.push(bytes.length);
    return bytes.length;
  });
  fill(log, 0, 500); // some 285 kB
  await readLines();
  assertEquals(sizes.length, 1);
  failures = 1;
  fill(log, 500, 1000);
  assertEquals((await readLines()).map(({ n }) => n), range(0, 1000));
  assert(sizes.slice(1).every((size) => size <= 4096));
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
  assert(stdout.startsWith(`${VERSION}: DevOps course info service\n\n${USAGE}\n`));
  for (const [name, { fallback, allowed }] of Object.entries(VARIABLES)) {
    const text = `${describeAllowed(allowed)} (default ${fallback})`;
    assertMatch(stdout, new RegExp(`\n  ${name} .*\n {20}${RegExp.escape(text)}\n`));
  }
  for (const name of Object.keys(DEFAULTS)) assert(stdout.includes(`\n  ${name} `), name);
  for (const word of ["--health", "SIGINT, SIGTERM", "SIGUSR2", "128 + N"]) {
    assert(stdout.includes(`  ${word}`));
  }
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
const HOSTS = {
  "0.0.0.0": ["127.0.0.1"],
  "::": ["127.0.0.1", "::1"],
  "::1": ["::1"],
  localhost: ["localhost"],
};

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

for (
  const [flag, what] of Object.entries({
    "--deny-env=PORT": "PORT",
    "--deny-sys=hostname": "hostname",
  })
) {
  Deno.test(`source: with ${flag}: one line that names deno.json, exit 2`, async () => {
    const form = wrapForm(SOURCE, (command) => command.toSpliced(2, 0, flag));
    await using service = await launch(form);
    assertEquals(await service.waitForCode(), 2);
    assertMatch(service.stderr, new RegExp(`^.*"${what}", see permissions in deno.json\n$`));
  });
}

for (const form of FORMS) {
  const formSpec = bindSpec(form);

  Deno.test(formSpec("GET / says where it runs, and since when", async () => {
    const { port } = await share(form);
    const read = async () => JSON.parse((await sendRaw(port, formatRequest("/"))).body);
    const { system, runtime } = await read();
    const platforms: Record<string, string> = { linux: "Linux", darwin: "Darwin" };
    assertObjectMatch(system, {
      hostname: Deno.hostname(),
      platform: platforms[Deno.build.os]!,
      platform_version: Deno.osRelease(),
      architecture: Deno.build.arch,
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
    const { request, gets, host, version } of [
      { request: "GET /health", gets: 200 },
      { request: "GET /health?x", gets: 200 },
      { request: "OPTIONS *", gets: 204 },
      { request: "get /", gets: 405 },
      { request: "BREW /", gets: 405 },
      { request: "GET //health", gets: 404 },
      { request: "GET /%2e%2e/health", gets: 404 },
      { request: "GET /x/../health", gets: 404 },
      // HTTP/1 alone
      { request: "GET http://other/health", gets: 200, host: "Host: x\r\n" },
      { request: "GET http://other/", gets: 400, host: "Host: x?\r\n" },
      { request: "GET /nowhere", gets: 400, host: "Host: x/health?\r\n" },
      { request: "GET /health", gets: 200, host: "Host:\r\n" },
      { request: "GET /health", gets: 200, host: "Host: ::1:5000\r\n" },
      { request: "GET /health", gets: 200, host: "" }, // Deno does not say which HTTP/1 this is
      { request: "GET /health", gets: 200, host: "", version: "HTTP/1.0" },
    ]
  ) {
    const how = host === undefined ? "by HTTP/1.1 and HTTP/2" : JSON.stringify({ host, version });
    Deno.test(formSpec(`${request} gets ${gets} ${how}`, async () => {
      const { port } = await share(form);
      const [method = "", path = ""] = request.split(" ");
      const parts = { method, ...(host !== undefined && { host }), ...(version && { version }) };
      const answers = [await sendRaw(port, formatRequest(path, parts))];
      if (host === undefined) {
        answers.push(await sendHttp2(port, { ":method": method, ":path": path }));
      }
      for (const { status, headers, body } of answers) {
        assertEquals([status, body], [gets, BODIES[gets] ?? body]);
        assertEquals(body.includes("healthy"), gets === 200);
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
    const { status, headers } = await sendHttp2(port, { ":method": "HEAD", ":path": "/nowhere" });
    assertEquals([status, headers.get("content-length")], [404, length]);
  }));

  Deno.test(formSpec("an :authority of HTTP/2 reaches no other route", async () => {
    const { port } = await share(form);
    const others = { "/": '"healthy"', "/health": '"endpoints"', "/x": '{"s' };
    for (const authority of BAD_HOSTS) {
      for (const [path, other] of Object.entries(others)) {
        const asking = sendHttp2(port, { ":authority": authority, ":path": path });
        const { body } = await asking.catch(() => ({ body: "" })); // Deno refuses most of them
        assert(!body.includes(other), `${path} of ${authority}: ${body}`);
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

  for (const [HOST, addresses] of Object.entries(HOSTS)) {
    const unless = HOST.includes("::") && !HAS_IPV6 && "this machine has no IPv6";
    Deno.test(formSpec(`HOST=${HOST} takes ${addresses} and shows it so`, async () => {
      await using service = await start(form, { HOST });
      for (const address of addresses) {
        // as probers send it: over IPv6 some leave out the brackets
        const request = formatRequest("/", { host: `Host: ${address}\r\n` });
        const { body } = await sendRaw(service.port, request, address);
        const { client_ip } = JSON.parse(body).request;
        assertEquals(client_ip, address === "localhost" ? service.lines[0]!.address : address);
      }
    }, { unless }));
  }

  for (const args of [[], ["--health"]]) {
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
    assertMatch(service.stderr, /^.*not valid unicode.*\n$/);
  }, { unless: form.isImage && "Docker takes no such value" }));

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

  Deno.test(formSpec("nothing is written to disk", async () => {
    const folder = makeTempPath("home");
    await Deno.mkdir(folder);
    const env = { TMPDIR: folder, HOME: folder, XDG_CACHE_HOME: folder };
    await using service = await start(form, env);
    await sendRaw(service.port, formatRequest("/"));
    service.kill("SIGTERM");
    assertEquals([await service.waitForCode(), [...Deno.readDirSync(folder)]], [0, []]);
  }, { unless: form.name !== "executable" && "Deno caches the source; an image is read-only" }));
}
