/**
 * The DevOps Info Service: `GET /` says what it is and where it runs, `GET /health` whether it is
 * healthy. A request goes from `Deno.serve` to {@linkcode handle}, to its route and to `respond`.
 * Data flows one way: environment → {@linkcode Config} → {@linkcode Service} → answer → response.
 */
import { accepts } from "@std/http/negotiation";
import { STATUS_TEXT } from "@std/http/status";
import project from "./deno.json" with { type: "json" };

// ---- What it is ----

const ABOUT = {
  name: project.name,
  version: project.version,
  description: "DevOps course info service",
  framework: "Deno.serve",
};

/** An entry is all that a route needs: `GET /`, OPTIONS, 404, 405 and the log follow this table. */
const ROUTES: readonly Route[] = [
  { path: "/", description: "Service information", answer: answerInformation },
  { path: "/health", description: "Health check", answer: answerHealth, isProbe: true },
];

/** Where it runs, read once, at the start. A new fact may need a permission, `sys` in deno.json. */
function readSystem() {
  const platforms: Record<string, string> = { darwin: "Darwin", windows: "Windows" };
  return {
    hostname: Deno.hostname(),
    platform: platforms[Deno.build.os] ?? "Linux",
    platform_version: Deno.osRelease(),
    architecture: Deno.build.arch,
    cpu_count: navigator.hardwareConcurrency,
    deno_version: Deno.version.deno,
  };
}

const ENDPOINTS = ROUTES.map(({ path, description }) => ({ path, method: "GET", description }));
const [ABOUT_JSON, ENDPOINTS_JSON] = [ABOUT, ENDPOINTS].map((part) => JSON.stringify(part));

/** What `GET /` reports, put together as text for speed. The page shows all of it, too. */
function renderFacts({ service: { systemJson }, moment, path, client }: Visit): string {
  const requestJson = JSON.stringify({ ...client(), method: "GET", path }); // as long for HEAD
  return `{"service":${ABOUT_JSON},"system":${systemJson},"runtime":${moment.json},` +
    `"request":${requestJson},"endpoints":${ENDPOINTS_JSON}}\n`;
}

// ---- Time ----

/**
 * Gives the milliseconds since the process started and, by `describe`, the facts about a moment.
 * These are kept for a millisecond, since formatting is slow. `wall` may jump, `monotonic` never.
 */
export function createClock(wall = Date.now, monotonic = () => performance.now()) {
  let millisecond = -1;
  let facts = describeTime(0, 0);
  const describe = (time = monotonic()) => {
    const uptime = Math.floor(time);
    if (uptime !== millisecond) [millisecond, facts] = [uptime, describeTime(wall(), uptime)];
    return facts;
  };
  return { monotonic, describe };
}

function describeTime(wall: number, uptime: number) {
  const minutes = Math.floor(uptime / 60_000);
  const count = (n: number, unit: string) => `${n} ${unit}${n === 1 ? "" : "s"}`;
  const runtime = {
    uptime_seconds: Math.floor(uptime / 1000),
    uptime_human: `${count(Math.floor(minutes / 60), "hour")}, ${count(minutes % 60, "minute")}`,
    current_time: new Date(wall).toISOString(),
    timezone: "UTC", // of current_time
  };
  return { ...runtime, json: JSON.stringify(runtime) };
}

// ---- Configuration ----

export type Config = {
  readonly [Name in keyof typeof VARIABLES]: (typeof VARIABLES)[Name]["fallback"];
};
type Level = (typeof LEVELS)[number];

const ADDRESSES = ["0.0.0.0", "::", "127.0.0.1", "::1", "localhost"];
const LEVELS = ["debug", "info", "warn", "error"] as const;
/** A new variable also needs a permission, `env` in deno.json. */
const VARIABLES = {
  HOST: allowOneOf("address to listen on", "0.0.0.0", ADDRESSES),
  PORT: allowNumber("port to listen on; 0 picks a free one, unknown to --health", 5000, 65535),
  LOG_LEVEL: allowOneOf("minimum level to log", "info", LEVELS),
  LOG_FORMAT: allowOneOf("form of a log line; text on a terminal", "json", ["json", "text"]),
  TRUST_PROXY: allowNumber("exact number of proxies that append to X-Forwarded-For", 0, 16),
  DRAIN_SECONDS: allowNumber("seconds to keep serving after SIGTERM; /health answers 503", 0, 300),
  SHUTDOWN_SECONDS: allowNumber("seconds that running requests then have to finish", 8, 300),
};

/** Deno's own variables that would bypass ours. */
const BYPASSES = { DENO_SERVE_ADDRESS: "HOST and PORT", DENO_TRUST_PROXY_HEADERS: "TRUST_PROXY" };

function allowOneOf<T extends string>(help: string, fallback: NoInfer<T>, values: readonly T[]) {
  const parse = (text: string) => values.find((value) => value === text.toLowerCase());
  return { help, fallback, allowed: values.join(", "), parse };
}

function allowNumber(help: string, fallback: number, max: number) {
  const parse = (text: string) => /^\d{1,5}$/.test(text) && +text <= max ? +text : undefined;
  return { help, fallback, allowed: `a whole number from 0 to ${max}`, parse };
}

/**
 * Reads the environment. An empty variable counts as unset; on a terminal the log is text by
 * default. Throws a {@linkcode RangeError} with a line for each value that is not allowed.
 */
export function parseConfig(env: Outside["env"], isTerminal: boolean): Config {
  const config: Record<string, string | number> = {};
  const problems: string[] = [];
  for (const [name, { fallback, allowed, parse }] of Object.entries(VARIABLES)) {
    const text = env.get(name);
    const value = text ? parse(text) : fallback;
    if (value !== undefined) config[name] = value;
    else problems.push(`${name}=${stringifySafely(text)}: allowed is ${allowed}`);
  }
  if (isTerminal && !env.get("LOG_FORMAT")) config.LOG_FORMAT = "text";
  for (const [name, ours] of Object.entries(BYPASSES)) {
    const text = env.get(name);
    if (text) problems.push(`${name}=${stringifySafely(text)}: not allowed, use ${ours} instead`);
  }
  if (problems.length > 0) throw new RangeError(problems.join("\n"));
  return config as Config;
}

// ---- Answers ----

/** Everything an answer depends on except the request. Only signals change `status`. */
export interface Service {
  readonly config: Config;
  readonly systemJson: string; // what readSystem found
  readonly clock: ReturnType<typeof createClock>;
  readonly log: ReturnType<typeof createLogger>;
  status: "healthy" | "unhealthy" | "draining";
}

interface Route {
  readonly path: string;
  readonly description: string;
  readonly answer: (visit: Visit) => Answer;
  readonly isProbe?: boolean; // probes come often: only LOG_LEVEL=debug logs their successes
}

type Peer = { remoteAddr: { hostname: string } };
type Visit = ReturnType<typeof beginVisit>;

interface Answer {
  readonly status: number & keyof typeof STATUS_TEXT; // `StatusCode` is missing in std from npm
  readonly headers: Record<string, string>;
  readonly body?: string;
  readonly cause?: unknown; // of a 500, for the log alone
}

const COMMON = { "cache-control": "no-store", "x-content-type-options": "nosniff" };
const JSON_HEADERS = { ...COMMON, "content-type": "application/json" };
const FACTS_HEADERS = { ...JSON_HEADERS, vary: "accept" };
const ALLOW = { allow: "GET, HEAD, OPTIONS" };
const BAD_HOST = "Host is not valid";
const FAILURE = "An unexpected error occurred";

/** Answers a request and logs it; never reads its body. */
export function handle(service: Service, request: Request, peer: Peer): Response {
  const visit = beginVisit(service, request, peer);
  let answer: Answer;
  try {
    answer = chooseAnswer(visit);
  } catch (cause) {
    answer = { ...refuse(500, FAILURE), cause };
  }
  logVisit(visit, answer);
  return respond(answer, request.method === "HEAD", service.status === "draining");
}

/** A request on its way through the service. `client` is read on demand: a probe needs none. */
function beginVisit(service: Service, request: Request, peer: Peer) {
  const { clock, config } = service;
  const begun = clock.monotonic();
  const path = PATH.exec(request.url)?.[1]?.slice(0, MAX_CHARACTERS) || "/";
  const route = ROUTES.find((route) => route.path === path);
  let described: ReturnType<typeof describeClient> | undefined;
  const client = () => described ??= describeClient(request.headers, peer, config.TRUST_PROXY);
  return { service, request, begun, moment: clock.describe(begun), path, route, client };
}

function chooseAnswer(visit: Visit): Answer {
  const { request, path, route } = visit;
  const host = (route?.isProbe && PLAIN_URL.exec(request.url)?.[1]) || request.headers.get("host");
  if (!VALID_HOST.test(host ?? "")) return refuse(400, BAD_HOST);
  if (request.method === "OPTIONS" && (route || path === "/*")) { // `OPTIONS *` has this path
    return { status: 204, headers: { ...COMMON, ...ALLOW } };
  }
  if (!route) return refuse(404, "Endpoint does not exist");
  if (request.method !== "GET" && request.method !== "HEAD") {
    return refuse(405, `Endpoint allows ${ALLOW.allow}`, ALLOW);
  }
  return route.answer(visit);
}

function answerInformation(visit: Visit): Answer {
  const json = renderFacts(visit);
  if (!wantsPage(visit.request)) return { status: 200, headers: FACTS_HEADERS, body: json };
  const body = renderPage(JSON.parse(json), visit.service.status);
  return { status: 200, headers: PAGE_HEADERS, body };
}

function answerHealth({ service: { status }, moment }: Visit): Answer {
  const { current_time: time, uptime_seconds: uptime } = moment;
  const body = `{"status":"${status}","timestamp":"${time}","uptime_seconds":${uptime}}\n`;
  return { status: status === "healthy" ? 200 : 503, headers: JSON_HEADERS, body };
}

function refuse(status: Answer["status"], message: string, headers = {}): Answer {
  const body = JSON.stringify({ error: STATUS_TEXT[status], message }) + "\n";
  return { status, headers: { ...JSON_HEADERS, ...headers }, body };
}

function logVisit(visit: Visit, { status, cause }: Answer): void {
  const { service: { clock, log }, request, begun, path, route, client } = visit;
  const isQuiet = route?.isProbe && status < 300;
  const level = status === 500 ? "error" : status === 503 ? "warn" : isQuiet ? "debug" : "info";
  if (!log.isEnabled(level)) return;
  const ended = clock.monotonic();
  const forwarded = log.isEnabled("debug") && request.headers.get("x-forwarded-for");
  log.write(level, "request", {
    method: request.method.slice(0, MAX_CHARACTERS),
    path,
    status,
    duration_ms: Math.round((ended - begun) * 1000) / 1000,
    ...client(),
    ...(forwarded && { forwarded_for: forwarded.slice(-MAX_CHARACTERS) }),
    ...(status === 500 && { error: Deno.inspect(cause) }),
  }, clock.describe(ended));
}

/** HEAD gets the length of GET's body but no body: with one, HTTP/2 clients refuse the answer. */
function respond({ status, headers, body }: Answer, isHead: boolean, isDraining: boolean) {
  const response = new Response(isHead ? null : body, { status });
  // one by one, which takes 1 µs less than all together in the constructor
  for (const name in headers) response.headers.set(name, headers[name]!);
  if (isDraining) response.headers.set("connection", "close");
  if (isHead && body) response.headers.set("content-length", String(new Blob([body]).size));
  return response;
}

// ---- Requests ----

/** How much of a field counts: Deno accepts 60 kB, older releases 380 kB; to escape it is slow. */
const MAX_CHARACTERS = 1000;
/** What RFC 3986 allows in host and port. Deno makes the URL from Host: `x/y` would add a path. */
const VALID_HOST = /^[\w.~!$&'()*+,;=%:[\]-]*$/;
/** Finds Host in a URL that has it as sent. To read any field costs a probe a tenth of its time. */
const PLAIN_URL = /^http:\/\/([^/?#]*)\/\w*$/;
/** Finds the path as it was sent: `new URL` would turn `/%2e%2e/health` into `/health`. */
const PATH = /^[^/]*\/\/[^/?#]*([^?#]*)/;
/** IPv4 or [IPv6], to which some proxies add a port, or IPv6. */
const FORWARDED_ADDRESS =
  /^(?:([\d.]+)|\[([\da-f:.]+)\])(?::\d+)?$|^([\da-f]*:[\da-f]*:[\da-f:.]*)$/i;

function describeClient(headers: Headers, { remoteAddr: { hostname } }: Peer, proxies: number) {
  const address = (proxies > 0 && findForwarded(headers, proxies)) || hostname;
  return {
    client_ip: address.replace(/^::ffff:(?=[\d.]+$)/i, ""), // how a dual-stack socket shows IPv4
    user_agent: headers.get("user-agent")?.slice(0, MAX_CHARACTERS) || "unknown",
  };
}

/** With N proxies in front, the Nth address from the right. Clients can forge those before it. */
function findForwarded(headers: Headers, proxies: number): string | undefined {
  const field = headers.get("x-forwarded-for") ?? "";
  const addresses = field.slice(-MAX_CHARACTERS).split(",");
  if (field.length > MAX_CHARACTERS) addresses.shift(); // its beginning may be cut off
  const address = addresses.at(-proxies)?.trim() ?? "";
  const [, ipv4, bracketed, ipv6] = FORWARDED_ADDRESS.exec(address) ?? [];
  return ipv4 ?? bracketed ?? ipv6;
}

/** Whether Accept names `text/html` and prefers it, unless the query asks for JSON. */
function wantsPage(request: Request): boolean {
  const accept = request.headers.get("accept") ?? "";
  if (!/text\/html/i.test(accept) || /[?&]format=json(?:[&#]|$)/.test(request.url)) return false;
  if (accept.length >= MAX_CHARACTERS) return false; // `accepts` is slow on a long field
  return accepts(request, "application/json", "text/html") === "text/html";
}

// ---- Page ----

const STATES = {
  healthy: { mark: "✓", color: "#186a3b", text: "/health answers 200." },
  unhealthy: { mark: "✗", color: "#b3261e", text: "/health answers 503 until the drill ends." },
  draining: { mark: "↓", color: "#7a4a00", text: "It is about to stop: /health answers 503." },
};
const STYLE = `
:root { color-scheme: light dark; background: Canvas; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 56rem; margin: auto; padding: 1rem; overflow-wrap: anywhere }
p { padding: .5rem; border: solid transparent; color: #fff; print-color-adjust: exact }
dl, dd { margin: 0 }
main > dl { display: grid; gap: 1.5rem 2rem; margin-bottom: 1.5rem }
main > dl { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
main > dl > div > dt { font-weight: bold }
dl dl + dl { margin-top: .5rem }
dl dl div { display: flex; flex-wrap: wrap; gap: 0 1rem; border-top: 1px solid #8886 }
dl dl dt { flex: 0 1 9rem }
dl dl dd { flex: 1 1 max-content }`;
const PAGE_HEADERS = {
  ...COMMON,
  "content-type": "text/html; charset=utf-8",
  "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  vary: "accept",
};

function renderPage(facts: object, status: Service["status"]): string {
  const { mark, color, text } = STATES[status];
  const icon = `<svg xmlns="http://www.w3.org/2000/svg"><circle r="150%" fill="${color}"/></svg>`;
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${mark} ${ABOUT.name}: ${status}</title>
<link rel="icon" href="data:image/svg+xml,${encodeURIComponent(icon)}">
<style>${STYLE}</style>
<main>
<h1>${ABOUT.name}</h1>
<p style="background: ${color}"><strong>${mark} ${status}.</strong> ${text}</p>
${renderValue(facts)}
<footer>Programs such as curl get <a href="?format=json">JSON</a>. Reload for new values.</footer>
</main>
`;
}

/** HTML of a value: an object as a list by its keys, an array as its elements, all else as text. */
function renderValue(value: unknown, key = ""): string {
  if (Array.isArray(value)) return value.map((item) => renderValue(item)).join("\n");
  if (value instanceof Object) {
    const rows = Object.entries(value)
      .map(([key, value]) => `<div><dt>${key}</dt><dd>${renderValue(value, key)}</dd></div>`);
    return `<dl>${rows.join("\n")}</dl>`;
  }
  const text = String(value).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
  return key === "path" ? `<a href=".${text}">${text}</a>` : text; // below a proxy's prefix, too
}

// ---- Logs ----

const MAX_QUEUED = 1024 * 1024; // about so many bytes
const BATCH_MILLISECONDS = 5; // a write costs about as much as a request, so lines share it

/**
 * Writes a line per event. Lines wait in a queue and are written together, asynchronously. If
 * nobody reads them, those above the limit are dropped and counted. `sink` gives how many bytes it
 * wrote; if it throws, the logger tries again.
 */
export function createLogger(config: Config, clock: Service["clock"], sink: Output["write"]) {
  let queue = "";
  let unwritten = new Uint8Array(); // of the lines that left the queue
  let maxBytes = Infinity; // of a write
  let dropped = 0;
  let writing: Promise<void> | undefined;

  /** `write` asks this too; ask it before you collect costly fields. */
  const isEnabled = (level: Level) => LEVELS.indexOf(level) >= LEVELS.indexOf(config.LOG_LEVEL);

  /** Never waits, never throws. `msg` is a constant text; `fields` has the values. */
  const write = (level: Level, msg: string, fields: object = {}, moment?: Visit["moment"]) => {
    if (!isEnabled(level)) return;
    if (queue.length + unwritten.length > MAX_QUEUED) dropped++;
    else queue += format(level, msg, fields, moment);
    writing ??= writeAll();
  };

  const format = (level: Level, msg: string, fields: object, moment = clock.describe()) => {
    if (config.LOG_FORMAT === "text") {
      const pairs = Object.entries(fields).map(formatPair).join("");
      return `${moment.current_time} ${level.toUpperCase().padEnd(5)} ${msg}${pairs}\n`;
    }
    return stringifySafely({ time: moment.current_time, level, msg, ...fields }) + "\n";
  };

  const writeAll = async () => {
    while (queue !== "" || dropped > 0) {
      await sleep(BATCH_MILLISECONDS);
      if (dropped > 0) queue += format("warn", "log lines dropped", { dropped });
      unwritten = new TextEncoder().encode(queue);
      [queue, dropped] = ["", 0];
      while (unwritten.length > 0) {
        try {
          unwritten = unwritten.subarray(await sink(unwritten.subarray(0, maxBytes)));
        } catch { // nobody reads any more, or a pipe that does not block is full
          maxBytes = 4096; // from now on: a pipe of Linux accepts so much whole, or not at all
          await sleep(BATCH_MILLISECONDS);
        }
      }
    }
    writing = undefined;
  };

  /** Waits until all lines are written, but at most `milliseconds`. */
  const flush = (milliseconds: number) => waitAtMost(milliseconds, writing);
  return { isEnabled, write, flush };
}

function formatPair([name, value]: [string, unknown]): string {
  return ` ${name}=${/^[\w.:/-]+$/.test(String(value)) ? value : stringifySafely(value)}`;
}

/** JSON that is safe in a log line and on a terminal: control and format characters are escaped. */
function stringifySafely(value: unknown): string {
  const json = JSON.stringify(value);
  if (/^[ -~]*$/.test(json)) return json;
  const escapeUnit = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const escape = (character: string) => character.split("").map(escapeUnit).join("");
  return json.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, escape);
}

// ---- Lifecycle ----

const IS_WINDOWS = Deno.build.os === "windows";
/** What stops the service: each signal with what it adds to 128 in an exit code. */
const STOP_SIGNALS = {
  SIGINT: 2,
  ...(IS_WINDOWS ? { SIGBREAK: 21 } : { SIGTERM: 15 }),
  // without a listener it ends process 1 with 139; from source, it has to end `--watch`
  ...(Deno.build.standalone && !IS_WINDOWS && { SIGHUP: 1 }),
};

function createService(config: Config, stdout: Output): Service {
  const clock = createClock();
  const log = createLogger(config, clock, (bytes) => stdout.write(bytes));
  return { config, systemJson: JSON.stringify(readSystem()), clock, log, status: "healthy" };
}

/** Serves until a signal says otherwise. Returns the exit code. */
async function serve(service: Service, stderr: Output): Promise<number> {
  const { config, log } = service;
  const end = listenForSignals(service).then(() => sleep(config.DRAIN_SECONDS * 1000));
  const limit = config.SHUTDOWN_SECONDS * 1000 + 100; // which a stop takes even without requests
  try {
    const finished = listen(service, end).then(() => true);
    const late = end.then(() => sleep(limit)).then(() => false);
    const isInTime = await Promise.race([finished, late]);
    if (isInTime) log.write("info", "stopped");
    else log.write("warn", "stopped before all requests were finished");
    return isInTime ? 0 : 1;
  } catch (error) {
    return print(stderr, `cannot listen on ${config.HOST} port ${config.PORT}: ${error}`, 1);
  } finally {
    await log.flush(1000);
  }
}

/** Resolves at the first signal to stop; a second one ends the process at once. */
function listenForSignals(service: Service): Promise<void> {
  const { config, clock, log } = service;
  const { promise, resolve } = Promise.withResolvers<void>();
  let last = -Infinity;
  for (const [signal, number] of Object.entries(STOP_SIGNALS)) {
    Deno.addSignalListener(signal as Deno.Signal, async () => {
      const time = clock.monotonic();
      if (time - last < 100) return; // `deno task` repeats Ctrl+C, and `--watch` adds SIGTERM
      last = time;
      if (service.status === "draining") {
        log.write("warn", "ended at once by a second signal", { signal });
        await log.flush(100);
        Deno.exit(128 + number);
      }
      service.status = "draining";
      log.write("info", "draining", { signal, seconds: config.DRAIN_SECONDS });
      resolve();
    });
  }
  if (IS_WINDOWS) return promise;
  Deno.addSignalListener("SIGUSR2", () => { // a drill, which clients cannot start
    if (service.status === "draining") return;
    service.status = service.status === "healthy" ? "unhealthy" : "healthy";
    log.write("warn", "health switched by hand", { status: service.status });
  });
  return promise;
}

/** Serves until `end`. Deno closes the port when file descriptors run out: this opens it again. */
async function listen(service: Service, end: Promise<void>): Promise<void> {
  const { config: { HOST, PORT }, log } = service;
  const options = {
    hostname: HOST,
    port: PORT,
    onListen({ hostname: address, port }: Deno.NetAddr) {
      options.port = port; // where 0 picked it, the next try must take the same again
      log.write("info", "listening", { address, port, version: ABOUT.version });
    },
    onError(error: unknown) { // before `handle`: with telemetry on, Deno parses the URL
      const isUrl = `${error}`.includes("Invalid URL");
      const answer = isUrl ? refuse(400, BAD_HOST) : refuse(500, FAILURE);
      const fields = { status: answer.status, error: `${error}`.slice(0, MAX_CHARACTERS) };
      log.write(isUrl ? "info" : "error", "request", fields);
      return respond(answer, false, service.status === "draining");
    },
  };
  let isOver = false;
  end.then(() => isOver = true);
  while (!isOver) {
    try {
      const server = Deno.serve(options, (request, peer) => handle(service, request, peer));
      await Promise.race([end, server.finished]); // `finished` rejects when Deno closes the port
      await server.shutdown();
    } catch (error) {
      if (!/os error (23|24|10024)\b/.test(`${error}`)) throw error; // ENFILE, EMFILE, WSAEMFILE
      log.write("error", "cannot accept connections", { error: `${error}` });
      await Promise.race([end, sleep(1000)]);
    }
  }
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Resolves with the promise's value, or with undefined after `milliseconds`. */
async function waitAtMost<T>(milliseconds: number, promise: Promise<T> | undefined) {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(resolve, milliseconds, undefined);
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// ---- Command line ----

/** The parts of `Deno` that tests replace. */
export type Outside = { env: Pick<Deno.Env, "get">; stdout: Output; stderr: Output };
type Output = Pick<typeof Deno.stdout, "write" | "isTerminal">;

const USAGE = `Usage: ${ABOUT.name} [--health | --version | --help]`;

/** Runs what the arguments ask for: serve, --health, --version or --help. Returns the exit code. */
export async function main(args: readonly string[], outside: Outside): Promise<number> {
  const { env, stdout, stderr } = outside;
  const option = args.length > 1 ? args.join(" ") : args[0];
  if (option === "--version") return print(stdout, `${ABOUT.name} ${ABOUT.version}`, 0);
  if (option === "--help") return print(stdout, describeUsage(), 0);
  if (option !== undefined && option !== "--health") {
    return print(stderr, `${USAGE}, not ${stringifySafely(option)}`, 2);
  }
  let service: Service;
  try {
    const config = parseConfig(env, stdout.isTerminal());
    if (option === "--health") return await probe(config, stdout);
    service = createService(config, stdout);
  } catch (error) { // Deno's advice for a missing permission does not fit here
    const { message } = error as Error;
    return print(stderr, message.replace(/run again with .*/, "see permissions in deno.json"), 2);
  }
  return await serve(service, stderr);
}

/** Returns `code`, for the caller to return. */
async function print(output: Output, text: string, code: number): Promise<number> {
  const writing = output.write(new TextEncoder().encode(text + "\n"));
  await waitAtMost(1000, writing.catch(() => {})); // its reader may be gone
  return code;
}

async function probe({ HOST, PORT }: Config, stdout: Output): Promise<number> {
  // loopback for a wildcard; a container may have no ::1, and :: takes IPv4 as well
  const hostname = HOST === "0.0.0.0" || HOST === "::" ? "127.0.0.1" : HOST;
  const answer = await waitAtMost(2000, askHealth(hostname, PORT).catch(String)) ??
    "no answer within 2 seconds";
  const line = answer.replace(/[^ -~]+/g, " ").trim().slice(0, 200); // any program may answer
  if (/^200\b/.test(line)) return print(stdout, line, 0);
  return print(stdout, `${hostname} port ${PORT}: ${line}`, 1);
}

/** Uses a socket: `fetch` would go through `HTTP_PROXY`, and costs more. */
async function askHealth(hostname: string, port: number): Promise<string> {
  if (port === 0) return "PORT=0 picks a free port, which --health cannot know";
  using connection = await Deno.connect({ hostname, port });
  const request = `GET /health HTTP/1.0\r\nUser-Agent: ${ABOUT.name}/${ABOUT.version}\r\n\r\n`;
  await connection.write(new TextEncoder().encode(request));
  let text = "";
  for await (const chunk of connection.readable) {
    text += new TextDecoder().decode(chunk);
    if (text.includes("\r\n\r\n") || text.length > 4096) break; // the answer may have any size
  }
  const [head = "", body = ""] = text.split("\r\n\r\n");
  const status = /^HTTP\/1\.\d (\d{3})\b/.exec(head)?.[1];
  return status ? `${status} ${body}` : `not HTTP: ${text}`;
}

function describeUsage(): string {
  const lines = Object.entries(VARIABLES).map(([name, { help, fallback, allowed }]) =>
    `  ${name.padEnd(18)}${help}\n${" ".repeat(20)}${allowed} (default ${fallback})`
  );
  return `${ABOUT.name} ${ABOUT.version}: ${ABOUT.description}

${USAGE}
  no argument       serve GET / and GET /health until a signal ends it
  --health          probe the running service
  --version         print the version
  --help            print this

Environment:
${lines.join("\n")}

Signals:
  ${Object.keys(STOP_SIGNALS).join(", ")}
                    drain, shut down, exit; a second one, after 100 ms, exits at once
  SIGUSR2           switch /health between healthy and unhealthy, for drills

Exit codes:
  0                 stopped in order; --health: the answer was 200
  1                 cannot listen, or requests were cut off; --health: any other answer, or none
  2                 a bad variable or argument, or a missing permission
  128 + N           a second signal, number N: ended at once`;
}

if (import.meta.main) Deno.exit(await main(Deno.args, Deno));
