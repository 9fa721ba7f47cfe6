/**
 * The DevOps Info Service: `GET /` says what it is and where it runs, `GET /health` whether it is healthy.
 * A request takes this path: `Deno.serve` → {@linkcode handle} → `answer` → `respond`.
 * Data flows one way: environment → {@linkcode Config} → {@linkcode Service} → facts → `Response`.
 */
import { accepts } from "@std/http/negotiation";
import { STATUS_CODE, STATUS_TEXT } from "@std/http/status";
import project from "./deno.json" with { type: "json" };

// ---- What it is ----

const ABOUT = {
  name: project.name,
  version: project.version,
  description: "DevOps course info service",
  framework: "Deno.serve",
};
const ENDPOINTS = [
  { path: "/", method: "GET", description: "Service information" },
  { path: "/health", method: "GET", description: "Health check" },
];

/** What `GET /` reports, as JSON or as a page. */
type Facts = ReturnType<typeof collectFacts>;

function collectFacts(exchange: Exchange) {
  const { service: { system, clock }, path } = exchange;
  const request = { ...findClient(exchange), method: "GET", path }; // HEAD needs the length of GET's answer
  return { service: ABOUT, system, runtime: clock.now(), request, endpoints: ENDPOINTS };
}

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

/**
 * Gives the monotonic time and, by `now`, the facts about time. These are kept for a millisecond, since
 * formatting is slow. Both sources give milliseconds: `wall` may jump, `monotonic` never does.
 */
export function createClock(wall = Date.now, monotonic = () => performance.now()) {
  let millisecond = -1;
  let kept = describeTime(0, 0);
  const now = () => {
    const uptime = Math.floor(monotonic()); // since the process started
    if (uptime !== millisecond) [millisecond, kept] = [uptime, describeTime(wall(), uptime)];
    return kept;
  };
  return { monotonic, now };
}

function describeTime(wall: number, uptime: number) {
  const uptime_seconds = Math.floor(uptime / 1000);
  const minutes = Math.floor(uptime_seconds / 60);
  const count = (n: number, unit: string) => `${n} ${unit}${n === 1 ? "" : "s"}`;
  return {
    uptime_seconds,
    uptime_human: `${count(Math.floor(minutes / 60), "hour")}, ${count(minutes % 60, "minute")}`,
    current_time: new Date(wall).toISOString(),
    timezone: "UTC", // of current_time
  };
}

function renderJson({ service, system, runtime, request, endpoints }: Facts): string {
  return `{"service":${stringifyOnce(service)},"system":${stringifyOnce(system)},` +
    `"runtime":${stringifyOnce(runtime)},"request":${JSON.stringify(request)},` +
    `"endpoints":${stringifyOnce(endpoints)}}\n`;
}

const SHARED_JSON = new WeakMap<object, string>();

/** The JSON of an object that never changes, such as most parts of `GET /`. */
function stringifyOnce(shared: object): string {
  let text = SHARED_JSON.get(shared);
  if (text === undefined) SHARED_JSON.set(shared, text = JSON.stringify(shared));
  return text;
}

// ---- Configuration ----

export type Config = {
  readonly [Name in keyof typeof VARIABLES]: (typeof VARIABLES)[Name]["fallback"];
};

/**
 * Reads the environment. An empty variable counts as unset; on a terminal the log is text by default.
 * Throws a {@linkcode RangeError} with a line for each value that is not allowed.
 */
export function parseConfig(env: Pick<Deno.Env, "get">, isTerminal: boolean): Config {
  const problems: string[] = [];
  const entries = Object.entries(VARIABLES).map(([name, { fallback, allowed, parse }]) => {
    const text = readVariable(env, name);
    if (!text) return [name, isTerminal && name === "LOG_FORMAT" ? "text" : fallback];
    const value = parse(text);
    if (value === undefined) {
      problems.push(`${name}=${stringifySafely(text)}: allowed is ${allowed}`);
    }
    return [name, value];
  });
  for (const [name, ours] of Object.entries(BYPASSES)) {
    const text = readVariable(env, name);
    if (text) problems.push(`${name}=${stringifySafely(text)}: not allowed, use ${ours} instead`);
  }
  if (problems.length > 0) throw new RangeError(problems.join("\n"));
  return Object.fromEntries(entries);
}

const VARIABLES = {
  HOST: allowOneOf("address to listen on", "0.0.0.0", [
    "0.0.0.0",
    "::",
    "127.0.0.1",
    "::1",
    "localhost",
  ]),
  PORT: allowWholeNumber(
    "port to listen on; 0 picks and logs a free one, unknown to --health",
    5000,
    65535,
  ),
  LOG_LEVEL: allowOneOf("minimum level to log", "info", ["debug", "info", "warn", "error"]),
  LOG_FORMAT: allowOneOf("form of a log line; text on a terminal", "json", ["json", "text"]),
  TRUST_PROXY: allowWholeNumber(
    "exact number of proxies in front that append to X-Forwarded-For",
    0,
    16,
  ),
  DRAIN_SECONDS: allowWholeNumber(
    "seconds to keep serving after SIGTERM while /health answers 503",
    0,
    300,
  ),
  SHUTDOWN_SECONDS: allowWholeNumber("seconds that running requests then have to finish", 8, 300),
};

/** Deno's own variables that would bypass ours. */
const BYPASSES = { DENO_SERVE_ADDRESS: "HOST and PORT", DENO_TRUST_PROXY_HEADERS: "TRUST_PROXY" };

function allowOneOf<T extends string>(help: string, fallback: NoInfer<T>, values: T[]) {
  const parse = (text: string) => values.find((value) => value === text);
  return { help, fallback, allowed: values.join(", "), parse };
}

function allowWholeNumber(help: string, fallback: number, max: number) {
  const parse = (text: string) =>
    /^\d{1,5}$/.test(text) && Number(text) <= max ? Number(text) : undefined;
  return { help, fallback, allowed: `a whole number from 0 to ${max}`, parse };
}

function readVariable(env: Pick<Deno.Env, "get">, name: string): string | undefined {
  try {
    return env.get(name);
  } catch (error) {
    if (error instanceof Deno.errors.InvalidData) return "\ufffd"; // not Unicode, so not an allowed value
    throw error;
  }
}

// ---- Routes ----

/** Everything an answer depends on except the request. Only signals change `status`. */
export interface Service {
  readonly config: Config;
  readonly system: ReturnType<typeof readSystem>;
  readonly clock: ReturnType<typeof createClock>;
  readonly log: ReturnType<typeof createLogger>;
  status: "healthy" | "unhealthy" | "draining";
}

/** A request on its way through the service. */
interface Exchange {
  readonly service: Service;
  readonly request: Request;
  readonly peer: { remoteAddr: { hostname: string } };
  readonly path: string;
  client?: { client_ip: string; user_agent: string };
}

/** Answers a request and logs it; never reads its body. After a failure only the log has the cause. */
export function handle(service: Service, request: Request, peer: Exchange["peer"]): Response {
  const { clock, log } = service;
  const start = clock.monotonic();
  const exchange: Exchange = { service, request, peer, path: findPath(request.url) };
  let response: Response;
  let failure = {};
  try {
    response = answer(exchange);
  } catch (error) {
    failure = { error: Deno.inspect(error) };
    response = refuse(exchange, STATUS_CODE.InternalServerError, "An unexpected error occurred");
  }
  const { status } = response;
  const level = status >= 500
    ? "error"
    : status < 300 && exchange.path === "/health"
    ? "debug"
    : "info";
  if (log.isEnabled(level)) {
    const duration_ms = Math.round((clock.monotonic() - start) * 1000) / 1000;
    const result = { method: request.method, path: exchange.path, status, duration_ms };
    log.write(level, "request", { ...result, ...findClient(exchange), ...failure });
  }
  return response;
}

function answer(exchange: Exchange): Response {
  const { service: { status }, request, path } = exchange;
  const { method, headers, url } = request;
  if (!isHost(headers.get("host"))) {
    return refuse(exchange, STATUS_CODE.BadRequest, "Host is not valid");
  }
  const isEndpoint = ENDPOINTS.some((endpoint) => endpoint.path === path);
  const hasOptions = isEndpoint || path === "/*"; // `OPTIONS *` arrives as this path
  if (method === "OPTIONS" && hasOptions) return respond(exchange, STATUS_CODE.NoContent, ALLOW);
  const isRead = method === "GET" || method === "HEAD";
  if (isEndpoint && !isRead) {
    return refuse(exchange, STATUS_CODE.MethodNotAllowed, `Endpoint allows ${ALLOW.allow}`, ALLOW);
  }
  if (path === "/health") return answerHealth(exchange); // from here on the endpoint is "/"
  const isShort = (headers.get("accept") ?? "").length < 1000; // `accepts` is slow on a long one
  if (isRead && isShort && accepts(request, "application/json", "text/html") === "text/html") {
    const page = renderPage(collectFacts(exchange), isEndpoint ? status : "not_found", url);
    return respond(
      exchange,
      isEndpoint ? STATUS_CODE.OK : STATUS_CODE.NotFound,
      PAGE_HEADERS,
      page,
    );
  }
  if (!isEndpoint) return refuse(exchange, STATUS_CODE.NotFound, "Endpoint does not exist", VARY);
  return respond(
    exchange,
    STATUS_CODE.OK,
    { ...JSON_TYPE, ...VARY },
    renderJson(collectFacts(exchange)),
  );
}

function answerHealth(exchange: Exchange): Response {
  const { status, clock } = exchange.service;
  const { current_time: timestamp, uptime_seconds } = clock.now();
  const code = status === "healthy" ? STATUS_CODE.OK : STATUS_CODE.ServiceUnavailable;
  return respond(
    exchange,
    code,
    JSON_TYPE,
    JSON.stringify({ status, timestamp, uptime_seconds }) + "\n",
  );
}

function refuse(
  exchange: Exchange,
  code: number & keyof typeof STATUS_TEXT,
  message: string,
  own = {},
) {
  const body = JSON.stringify({ error: STATUS_TEXT[code], message }) + "\n";
  return respond(exchange, code, { ...JSON_TYPE, ...own }, body);
}

const COMMON = { "cache-control": "no-store", "x-content-type-options": "nosniff" };
const ALLOW = { allow: "GET, HEAD, OPTIONS" };
const JSON_TYPE = { "content-type": "application/json" };
const VARY = { vary: "accept" };

/** Makes every response. HEAD gets the length of GET's body but no body: HTTP/2 clients reject one. */
function respond(
  { service, request }: Exchange,
  status: number,
  own: Record<string, string>,
  body?: string,
) {
  const isHead = request.method === "HEAD";
  const response = new Response(isHead ? null : body, { status });
  const { headers } = response; // the constructor sets them more slowly
  for (const [name, value] of Object.entries({ ...COMMON, ...own })) headers.set(name, value);
  if (service.status === "draining") headers.set("connection", "close");
  if (isHead && body) headers.set("content-length", String(new TextEncoder().encode(body).length));
  return response;
}

// ---- Requests ----

/** Deno makes the URL from Host, so `Host: x/health?` would change the path. HTTP/1.0 may have none. */
function isHost(host: string | null): boolean {
  if (host === null) return true;
  if (host.startsWith("[")) {
    return /^\[[\da-f:.]+\](?::\d*)?$/i.test(host) && URL.canParse(`http://${host}`);
  }
  const match = /^(?:[\w.~!$&'()*+,;=-]|%[\da-f]{2})+(?::(\d*))?$/i.exec(host);
  return match !== null && Number(match[1] ?? 0) <= 65535;
}

/** The path as it was sent: `new URL` would turn `/%2e%2e/health` into `/health`. */
function findPath(url: string): string {
  return /^[^/]*\/\/[^/?#]*([^?#]*)/.exec(url)?.[1] || "/";
}

/** Who sent the request. It is looked up once, and only when needed, since reading headers costs. */
function findClient(exchange: Exchange) {
  if (exchange.client) return exchange.client;
  const { service: { config }, request: { headers }, peer: { remoteAddr: { hostname } } } =
    exchange;
  return exchange.client = {
    client_ip: findForwarded(headers, config.TRUST_PROXY) ?? normalizeIpv6(hostname) ?? hostname,
    user_agent: headers.get("user-agent") || "unknown",
  };
}

/** With N proxies in front, the Nth address from the right. Clients can forge the addresses before it. */
function findForwarded(headers: Headers, proxies: number): string | undefined {
  const address = proxies > 0 && headers.get("x-forwarded-for")?.split(",").at(-proxies)?.trim();
  if (!address) return undefined;
  const [, ipv4, ipv6 = address] = /^(?:([\d.]+)|\[(.+)\])(?::\d{1,5})?$/.exec(address) ?? []; // or bare IPv6
  if (ipv4 === undefined) return normalizeIpv6(ipv6);
  return URL.parse(`http://${ipv4}`)?.hostname === ipv4 ? ipv4 : undefined; // URL makes 127.1 into 127.0.0.1
}

/** IPv6 in the canonical form of RFC 5952; `192.0.2.7` for `::ffff:192.0.2.7`; undefined for other text. */
function normalizeIpv6(text: string): string | undefined {
  if (!/^[\da-f.]*:[\da-f:.]+$/i.test(text)) return undefined;
  const address = URL.parse(`http://[${text}]`)?.hostname.slice(1, -1);
  const [, high = "", low = ""] = /^::ffff:([\da-f]+):([\da-f]+)$/.exec(address ?? "") ?? [];
  if (high === "") return address;
  return [high, low].map((part) => parseInt(part, 16)).map((part) => `${part >> 8}.${part & 255}`)
    .join(".");
}

// ---- Page ----

function renderPage(facts: Facts, state: keyof typeof BANNERS, url: string): string {
  const { service: { name, description, ...software }, system, runtime, request, endpoints } =
    facts;
  const { hostname, ...machine } = system;
  const { uptime_human, current_time, timezone } = runtime;
  const { mark, color, text } = BANNERS[state];
  const icon =
    `<svg xmlns="http://www.w3.org/2000/svg"><circle cx="8" cy="8" r="8" fill="${color}"/></svg>`;
  const rows = endpoints.map(({ path, method, description }) =>
    `<tr><td><a href="${path}">${path}</a></td><td>${method}</td><td>${description}</td></tr>`
  );
  const encodeUnit = (unit: string) => `%${unit.charCodeAt(0).toString(16)}`;
  const [origin = ""] = /^[^/]*\/\/[^/?#]*/.exec(url) ?? [];
  const safeOrigin = origin.replace(/[^\w.~:/%[\]-]/g, encodeUnit); // in a shell
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="description" content="${escapeHtml(description)}">
<title>${mark} ${escapeHtml(name)}: ${makeLabel(state)}</title>
<link rel="icon" href="data:image/svg+xml,${encodeURIComponent(icon)}">
<style>${STYLE}</style>
<header>
<hgroup><h1>${escapeHtml(name)}</h1><p>${escapeHtml(description)}</p></hgroup>
<p class="banner ${state}"><strong>${mark} ${makeLabel(state)}.</strong> ${text}</p>
</header>
<main>
${renderSection(["service", { hostname, uptime_human, ...software }])}
<section><h2>Endpoints</h2>
<table><tr><th>Path</th><th>Method</th><th>Description</th></tr>${rows.join("")}</table>
<p>As JSON: <code>curl "${safeOrigin}/"</code></p></section>
${Object.entries({ system: machine, request }).map(renderSection).join("\n")}
</main>
<footer>Made at <time datetime="${current_time}">${
    current_time.slice(0, 19).replace("T", " ")
  }</time> \
${timezone}. Reload to renew it. The tooltip of a label is its JSON key.</footer>
`;
}

function renderSection([name, facts]: [string, object]): string {
  const rows = Object.entries(facts).map(([key, value]) =>
    `<div><dt title="${key}">${makeLabel(key)}</dt><dd>${escapeHtml(value)}</dd></div>`
  );
  return `<section><h2>${makeLabel(name)}</h2><dl>${rows.join("\n")}</dl></section>`;
}

function makeLabel(key: string): string {
  return LABELS[key] ?? key.charAt(0).toUpperCase() + key.slice(1).replaceAll("_", " ");
}

function escapeHtml(text: unknown): string {
  return String(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

const BANNERS = {
  healthy: { mark: "✓", color: "#186a3b", text: "/health answers 200." },
  unhealthy: {
    mark: "✗",
    color: "#b3261e",
    text: "A drill: /health answers 503 until SIGUSR2 ends it.",
  },
  draining: { mark: "↓", color: "#7a4a00", text: "About to stop: /health answers 503." },
  not_found: {
    mark: "?",
    color: "#505860",
    text: "Nothing is at this address. The endpoints below exist.",
  },
};
const LABELS: Record<string, string> = {
  uptime_human: "Uptime",
  cpu_count: "CPUs",
  client_ip: "Client IP",
};
const STYLE = `
:root { color-scheme: light dark; background: Canvas; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 56rem; margin: auto; padding: 1rem; overflow-wrap: anywhere }
body, header, main { display: grid; gap: 1.5rem 2rem }
main { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)) }
h1, h2, p, dl, dd { margin: 0; font-size: 1rem }
h1 { font-size: 1.5rem }
.banner { padding: .5rem; border: solid #0000; border-radius: .5rem; color: #fff; print-color-adjust: exact }
${
  Object.entries(BANNERS).map(([name, { color }]) => `.${name} { background: ${color} }`).join("\n")
}
table { width: 100%; border-spacing: 0; margin-bottom: .5rem }
div, tr { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: .25rem 0; border-top: 1px solid #8886 }
dt { flex: 0 1 9rem }
th, td { flex: 0 1 5rem; padding: 0; text-align: left }
dd, :is(th, td):last-child { flex: 1 1 10rem }
dt, th, footer { font-weight: normal; opacity: .75 }`;
const STYLE_HASH = new Uint8Array(
  await crypto.subtle.digest("SHA-256", new TextEncoder().encode(STYLE)),
);
const PAGE_HEADERS = {
  "content-type": "text/html; charset=utf-8",
  "content-security-policy": `default-src 'none'; style-src 'sha256-${STYLE_HASH.toBase64()}'; ` +
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  ...VARY,
};

// ---- Logs ----

/**
 * Writes a line per event. Lines wait in a queue and are written together, asynchronously. If nobody reads
 * them, lines above the limit are dropped and counted; requests are not affected. `sink` returns how many
 * bytes it wrote. If it throws, the logger tries again: a pipe took none of up to `ATOMIC_BYTES`.
 */
export function createLogger(
  config: Config,
  clock: Clock,
  sink: Output["write"],
  telemetry?: Telemetry,
) {
  let queue = "";
  let unwritten = new Uint8Array();
  let taken = 0; // bytes until the first failure, which makes it -Infinity
  let dropped = 0;
  let writing: Promise<void> | undefined;

  /** `write` asks this too; ask it before you collect costly fields. */
  const isEnabled = (level: Level) => SEVERITY[level] >= SEVERITY[config.LOG_LEVEL];
  /** Waits until all lines are written, but at most `milliseconds`. */
  const flush = (milliseconds: number) => waitAtMost(milliseconds, writing ?? Promise.resolve());

  /** Never waits, never throws. `msg` is a constant text; `fields` has the values. */
  const write = (level: Level, msg: string, fields: object = {}) => {
    if (!isEnabled(level)) return;
    const line = format(level, msg, fields);
    telemetry?.(level, line);
    if (queue.length + unwritten.length > MAX_QUEUED) dropped++;
    else queue += line + "\n";
    writing ??= writeAll();
  };

  const format = (level: Level, msg: string, fields: object) => {
    const time = clock.now().current_time;
    if (config.LOG_FORMAT === "json") return stringifySafely({ time, level, msg, ...fields });
    const show = (value: unknown) =>
      /^[\w.:/-]+$/.test(`${value}`) ? value : stringifySafely(value);
    const pairs = Object.entries(fields).map(([key, value]) => ` ${key}=${show(value)}`);
    return `${time} ${level.toUpperCase().padEnd(5)} ${msg}${pairs.join("")}`;
  };

  const writeAll = async () => {
    while (queue !== "" || dropped > 0) {
      await sleep(BATCH_MILLISECONDS); // a write costs about as much as a request: share it
      if (dropped > 0) queue += format("warn", "log lines dropped", { dropped }) + "\n";
      unwritten = new TextEncoder().encode(queue);
      [queue, dropped] = ["", 0];
      while (unwritten.length > 0) await writeSome();
      unwritten = new Uint8Array(); // an empty rest of it would keep its memory
    }
    writing = undefined;
  };

  const writeSome = async () => {
    const some = unwritten.subarray(0, taken < 2 * PIPE_CAPACITY ? ATOMIC_BYTES : undefined);
    const wholeLines = some.subarray(0, some.lastIndexOf("\n".charCodeAt(0)) + 1); // a stop then cuts no line
    try {
      const length = await sink(wholeLines.length > 0 ? wholeLines : some);
      unwritten = unwritten.subarray(length);
      taken += length;
    } catch {
      taken = -Infinity; // small pieces from now on, so that none is written twice
      await sleep(RETRY_MILLISECONDS); // the reader is slow or gone; nobody else can be told
    }
  };

  return { isEnabled, write, flush };
}

type Clock = Service["clock"];
type Level = Config["LOG_LEVEL"];
type Telemetry = (level: Level, line: string) => void;
const SEVERITY = { debug: 0, info: 1, warn: 2, error: 3 };
const MAX_QUEUED = 1024 * 1024; // about so many bytes
const ATOMIC_BYTES = 4096; // what a non-blocking pipe takes whole, or not at all: PIPE_BUF of Linux
const PIPE_CAPACITY = 65536; // a reader that has taken twice as much gets all at once, which is faster
const BATCH_MILLISECONDS = 10;
const RETRY_MILLISECONDS = 20;

/** JSON that is safe in a log line and on a terminal: control and format characters are escaped. */
function stringifySafely(value: unknown): string {
  const json = JSON.stringify(value);
  if (/^[ -~]*$/.test(json)) return json; // most lines are ASCII
  const escapeUnit = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return json.replace(
    /[\p{Cc}\p{Cf}\u2028\u2029]/gu,
    (character) => character.replace(/[^]/g, escapeUnit),
  );
}

/** With `OTEL_DENO` (set at compile time or start), Deno exports as logs only what the console prints. */
function findTelemetry(): Telemetry | undefined {
  try {
    Deno.telemetry.meterProvider.getMeter(ABOUT.name).createCounter("unused"); // throws if telemetry is off
    return (level, line) => console[level](line);
  } catch {
    return undefined;
  }
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Resolves with the promise's value, or with undefined after `milliseconds`. */
async function waitAtMost<T>(milliseconds: number, promise: Promise<T>): Promise<T | undefined> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => resolve(undefined), milliseconds);
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// ---- Lifecycle ----

async function serve(config: Config, { stdout, stderr }: Outside): Promise<number> {
  const clock = createClock();
  const log = createLogger(config, clock, (bytes) => stdout.write(bytes), findTelemetry());
  const service: Service = { config, system: readSystem(), clock, log, status: "healthy" };
  const stopSignal = listenForStop(service);
  listenForDrill(service);
  try {
    const listener = openListener(service);
    await Promise.race([listener.lost, stopSignal.then(() => sleep(config.DRAIN_SECONDS * 1000))]);
    const isInTime = await waitAtMost(
      config.SHUTDOWN_SECONDS * 1000,
      listener.stop().then(() => true),
    );
    log.write(
      isInTime ? "info" : "warn",
      isInTime ? "stopped" : "stopped before all requests were finished",
    );
    return isInTime ? 0 : 1;
  } catch (error) {
    return print(stderr, `cannot listen on ${config.HOST} port ${config.PORT}: ${error}`, 1);
  } finally {
    await log.flush(FLUSH_MILLISECONDS.inOrder);
  }
}

const STOP_SIGNALS = {
  SIGINT: 2,
  ...Deno.build.os === "windows" ? { SIGBREAK: 21 } : { SIGTERM: 15 },
};
const REPEATED_SIGNAL_MILLISECONDS = 100;
const FLUSH_MILLISECONDS = { inOrder: 1000, atOnce: 100 };
const LISTEN_AGAIN_MILLISECONDS = 200; // between tries; a try that lasts so long has succeeded

/** Resolves at the first signal, which starts the drain; a second one ends the process at once. */
function listenForStop(service: Service): Promise<void> {
  const { config, clock, log } = service;
  const { promise, resolve } = Promise.withResolvers<void>();
  let last = { signal: "", time: 0 };
  for (const [signal, number] of Object.entries(STOP_SIGNALS)) {
    Deno.addSignalListener(signal as Deno.Signal, async () => {
      const time = clock.monotonic();
      const isRepeated = signal === last.signal && time - last.time < REPEATED_SIGNAL_MILLISECONDS;
      if (isRepeated || Deno.exitCode !== 0) return; // `deno task` repeats Ctrl+C; it may be ending already
      last = { signal, time };
      if (service.status !== "draining") {
        service.status = "draining";
        log.write("info", "draining", { signal, seconds: config.DRAIN_SECONDS });
        return resolve();
      }
      Deno.exitCode = 128 + number; // even if the drain ends first
      log.write("warn", "ended at once by a second signal", { signal });
      await log.flush(FLUSH_MILLISECONDS.atOnce);
      Deno.exit();
    });
  }
  return promise;
}

/** SIGUSR2 switches /health to 503 and back, for drills. Clients cannot do this. */
function listenForDrill(service: Service): void {
  if (Deno.build.os === "windows") return;
  Deno.addSignalListener("SIGUSR2", () => {
    if (service.status === "draining") return;
    service.status = service.status === "healthy" ? "unhealthy" : "healthy";
    service.log.write("warn", "health switched by hand", { status: service.status });
  });
}

/** Opens the port, and opens it again whenever Deno closed it because file descriptors ran out. */
function openListener(service: Service) {
  const { config, log } = service;
  const options = {
    hostname: config.HOST,
    port: config.PORT,
    automaticCompression: false,
    onListen() {},
  };
  const open = () => Deno.serve(options, (request, peer) => handle(service, request, peer));
  let server: Deno.HttpServer<Deno.NetAddr> | undefined = open();
  let isClosing = false;
  const { hostname: address, port } = server.addr;
  options.port = port; // where 0 picked it, `open` must take the same again
  log.write("info", "listening", { address, port, version: ABOUT.version });

  const waitForFailure = (running = server) =>
    running?.finished.then(() => undefined, (error) => error);
  const reopen = async () => await waitForFailure(server = open());
  const keepOpen = async () => {
    for (let failure = await waitForFailure(); failure; failure = await waitForFailure()) {
      log.write("error", "cannot accept connections", { error: `${failure}` });
      while (failure) {
        server = undefined; // 2.7.11 hangs when a server that has failed is shut down
        if (!/os error (23|24|10024)\b/.test(`${failure}`)) throw failure; // ENFILE, EMFILE, WSAEMFILE
        await sleep(LISTEN_AGAIN_MILLISECONDS);
        if (isClosing) return;
        failure = await waitAtMost(LISTEN_AGAIN_MILLISECONDS, reopen()).catch((error) => error);
      }
      if (!isClosing) log.write("info", "accepting connections again");
    }
  };
  const stop = async () => {
    isClosing = true;
    await server?.shutdown();
  };
  return { lost: keepOpen(), stop }; // `lost` rejects if the port cannot be opened again
}

// ---- Probe and command line ----

/** Runs what the arguments ask for: serve, --health, --version or --help. Returns the exit code. */
export async function main(args: readonly string[], outside: Outside): Promise<number> {
  const { env, stdout, stderr } = outside;
  const option = args.length > 1 ? args.join(" ") : args[0];
  if (option === "--version") return print(stdout, `${ABOUT.name} ${ABOUT.version}`, 0);
  if (option === "--help") return print(stdout, describeUsage(), 0);
  if (option !== undefined && option !== "--health") {
    return print(stderr, `${USAGE}, not ${stringifySafely(option)}`, 2);
  }
  let config: Config;
  try {
    config = parseConfig(env, stdout.isTerminal());
  } catch (error) {
    return print(stderr, (error as Error).message, 2);
  }
  return option === "--health" ? await probe(config, outside) : await serve(config, outside);
}

/** The parts of `Deno` that tests replace. */
export type Outside = { env: Pick<Deno.Env, "get"> } & Record<"stdout" | "stderr", Output>;
type Output = Pick<typeof Deno.stdout, "write" | "isTerminal">;
const USAGE = `Usage: ${ABOUT.name} [--health | --version | --help]`;
const PROBE_SECONDS = 2;

/** Bypasses the console, which telemetry may redirect. Returns `code`, for the caller to return. */
async function print(output: Output, text: string, code: number): Promise<number> {
  const written = output.write(new TextEncoder().encode(text + "\n")).catch(() => {}); // its reader may be gone
  await waitAtMost(FLUSH_MILLISECONDS.inOrder, written); // or hang
  return code;
}

async function probe({ HOST, PORT }: Config, { stdout }: Outside): Promise<number> {
  // loopback for a wildcard; a container may have no ::1, and :: takes IPv4 as well
  const hostname = HOST === "0.0.0.0" || HOST === "::" ? "127.0.0.1" : HOST;
  const found = await waitAtMost(PROBE_SECONDS * 1000, askHealth(hostname, PORT).catch(String)) ??
    `no answer within ${PROBE_SECONDS} seconds`;
  const line = found.replace(/[^\x20-\x7e]+/g, " ").trim().slice(0, 200); // any program may have answered
  return /^200\b/.test(line)
    ? print(stdout, line, 0)
    : print(stdout, `${hostname} port ${PORT}: ${line}`, 1);
}

/** Uses a socket: `fetch` would go through `HTTP_PROXY`, and costs more. */
async function askHealth(hostname: string, port: number): Promise<string> {
  if (port === 0) return "PORT=0 picks a free port, which --health cannot know";
  using connection = await Deno.connect({ hostname, port });
  const request = `GET /health HTTP/1.0\r\nUser-Agent: ${ABOUT.name}/${ABOUT.version}\r\n\r\n`;
  await connection.write(new TextEncoder().encode(request));
  let text = "";
  const buffer = new Uint8Array(4096);
  while (!text.includes("\r\n\r\n") && text.length < buffer.length) { // the answer may have any size
    const length = await connection.read(buffer);
    if (length === null) break;
    text += new TextDecoder().decode(buffer.subarray(0, length));
  }
  const [, code, body = ""] = /^HTTP\/1\.\d (\d{3})\b(?:.*?\r\n\r\n(.*))?/s.exec(text) ?? [];
  return code ? `${code} ${body}` : `not HTTP: ${text}`;
}

function describeUsage(): string {
  const lines = Object.entries(VARIABLES).map(([name, { help, fallback, allowed }]) =>
    `  ${name.padEnd(18)}${help}\n${" ".repeat(20)}${allowed} (default ${fallback})`
  );
  return `${ABOUT.name} ${ABOUT.version}: ${ABOUT.description}

${USAGE}
  no argument       serve GET / and GET /health until SIGINT or SIGTERM
  --health          probe the running service
  --version         print the version
  --help            print this

Environment:
${lines.join("\n")}

Signals:
  SIGTERM, SIGINT   drain, shut down, exit; a second one exits at once
  SIGUSR2           switch /health between healthy and unhealthy, for drills

Exit codes:
  0                 stopped in order; --health: the answer was 200
  1                 cannot listen, or requests were cut off; --health: any other answer, or none
  2                 a bad variable or argument
  130, 143          a second SIGINT, SIGTERM: ended at once`;
}

if (import.meta.main) {
  const code = await main(Deno.args, Deno);
  Deno.exit(Deno.exitCode || code); // a second signal sets the former
}
