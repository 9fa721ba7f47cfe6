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
const ENDPOINTS = ROUTES.map(({ path, description }) => ({ path, method: "GET", description }));

/** What `GET /` reports, as JSON and as a page: both show whatever is added here. */
function collectFacts({ service: { system }, path, time, client }: Visit) {
  const request = { ...client(), method: "GET", path }; // HEAD needs the length of GET's answer
  return { service: ABOUT, system, runtime: time, request, endpoints: ENDPOINTS };
}

// ---- Configuration ----

export type Config = {
  readonly [Name in keyof typeof VARIABLES]: (typeof VARIABLES)[Name]["fallback"];
};
type Env = Pick<Deno.Env, "get">;

const ADDRESSES = ["0.0.0.0", "::", "127.0.0.1", "::1", "localhost"];
/** A new variable also needs a permission, `env` in deno.json. */
const VARIABLES = {
  HOST: allowOneOf("address to listen on", "0.0.0.0", ADDRESSES),
  PORT: allowNumber("port to listen on; 0 picks a free one, unknown to --health", 5000, 65535),
  LOG_LEVEL: allowOneOf("minimum level to log", "info", ["debug", "info", "warn", "error"]),
  LOG_FORMAT: allowOneOf("form of a log line; text on a terminal", "json", ["json", "text"]),
  TRUST_PROXY: allowNumber("exact number of proxies that append to X-Forwarded-For", 0, 16),
  DRAIN_SECONDS: allowNumber("seconds to keep serving after SIGTERM; /health answers 503", 0, 300),
  SHUTDOWN_SECONDS: allowNumber("seconds that running requests then have to finish", 8, 300),
};

/** Deno's own variables that would bypass ours. */
const BYPASSES = { DENO_SERVE_ADDRESS: "HOST and PORT", DENO_TRUST_PROXY_HEADERS: "TRUST_PROXY" };

function allowOneOf<T extends string>(help: string, fallback: NoInfer<T>, values: T[]) {
  const parse = (text: string) => values.find((value) => value === text);
  return { help, fallback, allowed: values.join(", "), parse };
}

function allowNumber(help: string, fallback: number, max: number) {
  const parse = (text: string) =>
    /^\d{1,5}$/.test(text) && Number(text) <= max ? Number(text) : undefined;
  return { help, fallback, allowed: `a whole number from 0 to ${max}`, parse };
}

/**
 * Reads the environment. An empty variable counts as unset; on a terminal the log is text by
 * default. Throws a {@linkcode RangeError} with a line for each value that is not allowed.
 */
export function parseConfig(env: Env, isTerminal: boolean): Config {
  const config: Record<string, string | number> = {};
  const problems: string[] = [];
  for (const [name, { fallback, allowed, parse }] of Object.entries(VARIABLES)) {
    const text = readVariable(env, name);
    const value = text ? parse(text) : isTerminal && name === "LOG_FORMAT" ? "text" : fallback;
    if (value !== undefined) config[name] = value;
    else problems.push(`${name}=${stringifySafely(text)}: allowed is ${allowed}`);
  }
  for (const [name, ours] of Object.entries(BYPASSES)) {
    const text = readVariable(env, name);
    if (text) problems.push(`${name}=${stringifySafely(text)}: not allowed, use ${ours} instead`);
  }
  if (problems.length > 0) throw new RangeError(problems.join("\n"));
  return config as Config;
}

function readVariable(env: Env, name: string): string | undefined {
  try {
    return env.get(name);
  } catch (error) {
    if (error instanceof Deno.errors.InvalidData) return "\ufffd"; // not Unicode, so not allowed
    throw error;
  }
}

// ---- Machine and time ----

type Clock = ReturnType<typeof createClock>;
type Moment = ReturnType<typeof describeTime>;

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
 * Gives the monotonic time since the process started and, by `describe`, the facts about a moment.
 * These are kept for a millisecond, since formatting is slow. Both sources give milliseconds:
 * `wall` may jump, `monotonic` never does.
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
  const uptime_seconds = Math.floor(uptime / 1000);
  return {
    uptime_seconds,
    uptime_human: splitBySixty(Math.floor(uptime_seconds / 60), "hour", "minute"),
    current_time: new Date(wall).toISOString(),
    timezone: "UTC", // of current_time
  };
}

/** Says 62 minutes as `1 hour, 2 minutes`. */
function splitBySixty(total: number, large: string, small: string): string {
  const count = (n: number, unit: string) => `${n} ${unit}${n === 1 ? "" : "s"}`;
  return `${count(Math.floor(total / 60), large)}, ${count(total % 60, small)}`;
}

// ---- Answers ----

/** Everything an answer depends on except the request. Only signals change `status`. */
export interface Service {
  readonly config: Config;
  readonly system: ReturnType<typeof readSystem>;
  readonly clock: Clock;
  readonly log: ReturnType<typeof createLogger>;
  status: "healthy" | "unhealthy" | "draining";
}

interface Route {
  readonly path: string;
  readonly description: string;
  readonly answer: (visit: Visit) => Answer;
  /** Probes come often: only LOG_LEVEL=debug logs their successes. */
  readonly isProbe?: boolean;
}

/** A request on its way through the service. */
interface Visit {
  readonly service: Service;
  readonly request: Request;
  readonly path: string;
  readonly time: Moment;
  /** Who asks. Reading it costs, and the answer and the log of a probe need none of it. */
  readonly client: () => ReturnType<typeof describeClient>;
}

interface Answer {
  readonly status: Status;
  readonly headers: Record<string, string>;
  readonly body?: string;
}

type Status = number & keyof typeof STATUS_TEXT; // `StatusCode` is missing in std from npm
type Peer = { remoteAddr: { hostname: string } };

const ALLOW = { allow: "GET, HEAD, OPTIONS" };
const JSON_TYPE = { "content-type": "application/json" };
const VARY = { vary: "accept" };

/** Answers a request and logs it; never reads its body. Only the log has the cause of a failure. */
export function handle(service: Service, request: Request, peer: Peer): Response {
  const { config, clock, log } = service;
  const begun = clock.monotonic();
  const path = findPath(request.url);
  const route = ROUTES.find((route) => route.path === path);
  let described: ReturnType<typeof describeClient> | undefined;
  const client = () => described ??= describeClient(request, peer, config.TRUST_PROXY);
  const visit = { service, request, path, time: clock.describe(begun), client };
  let answer: Answer;
  let cause = {};
  try {
    answer = chooseAnswer(route, visit);
  } catch (error) {
    cause = { error: Deno.inspect(error) };
    answer = refuse(500, "An unexpected error occurred");
  }
  const { status } = answer;
  const level = status >= 500 ? "error" : route?.isProbe && status < 300 ? "debug" : "info";
  if (log.isEnabled(level)) {
    const ended = clock.monotonic();
    const duration_ms = Math.round((ended - begun) * 1000) / 1000;
    const method = request.method.slice(0, MAX_CHARACTERS);
    const fields = { method, path, status, duration_ms };
    log.write(level, "request", { ...fields, ...client(), ...cause }, clock.describe(ended));
  }
  return respond(answer, request.method === "HEAD", service.status === "draining");
}

function chooseAnswer(route: Route | undefined, visit: Visit): Answer {
  const { request: { method, headers }, path } = visit;
  if (!isHost(headers.get("host"))) return refuse(400, "Host is not valid");
  if (method === "OPTIONS" && (route || path === "/*")) { // `OPTIONS *` arrives as this path
    return { status: 204, headers: ALLOW };
  }
  if (!route) return refuse(404, "Endpoint does not exist");
  if (method !== "GET" && method !== "HEAD") {
    return refuse(405, `Endpoint allows ${ALLOW.allow}`, ALLOW);
  }
  return route.answer(visit);
}

function answerInformation(visit: Visit): Answer {
  const facts = collectFacts(visit);
  return prefersPage(visit.request)
    ? { status: 200, headers: PAGE_HEADERS, body: renderPage(facts, visit.service.status) }
    : { status: 200, headers: { ...JSON_TYPE, ...VARY }, body: renderJson(facts) };
}

function answerHealth({ service: { status }, time }: Visit): Answer {
  const { current_time: timestamp, uptime_seconds } = time;
  return makeJson(status === "healthy" ? 200 : 503, { status, timestamp, uptime_seconds });
}

function refuse(status: Status, message: string, headers = {}): Answer {
  return makeJson(status, { error: STATUS_TEXT[status], message }, headers);
}

function makeJson(status: Status, value: object, headers = {}): Answer {
  return { status, headers: { ...JSON_TYPE, ...headers }, body: JSON.stringify(value) + "\n" };
}

/** The last JSON of each part of `GET /`: most never change, and none may be changed in place. */
const PARTS = new Map<string, { part: unknown; json: string }>();

/** As `JSON.stringify`, at 0.9 of the CPU time of `GET /`. */
function renderJson(facts: object): string {
  let members = "";
  for (const [name, part] of Object.entries(facts)) {
    let kept = PARTS.get(name);
    if (!kept || kept.part !== part) PARTS.set(name, kept = { part, json: JSON.stringify(part) });
    members += `${members && ","}"${name}":${kept.json}`;
  }
  return `{${members}}\n`;
}

/** HEAD gets the length of GET's body but no body: HTTP/2 clients refuse such an answer. */
function respond({ status, headers, body }: Answer, isHead: boolean, isDraining: boolean) {
  const response = new Response(isHead ? null : body, { status });
  const set = (name: string, value: string) => response.headers.set(name, value);
  set("cache-control", "no-store");
  set("x-content-type-options", "nosniff");
  for (const [name, value] of Object.entries(headers)) set(name, value);
  if (isDraining) set("connection", "close");
  if (isHead && body) set("content-length", String(new TextEncoder().encode(body).length));
  return response;
}

// ---- Requests ----

/** How much of a field counts: Deno takes 380,000 characters, and escaping 60,000 takes 30 ms. */
const MAX_CHARACTERS = 1000;

/** The path as it was sent: `new URL` would turn `/%2e%2e/health` into `/health`. */
function findPath(url: string): string {
  const path = /^[^/]*\/\/[^/?#]*([^?#]*)/.exec(url)?.[1];
  return path?.slice(0, MAX_CHARACTERS) || "/";
}

function describeClient({ headers }: Request, { remoteAddr: { hostname } }: Peer, proxies: number) {
  return {
    // to parse costs, and IPv4 has one spelling
    client_ip: findForwarded(headers, proxies) ??
      (hostname.includes(":") ? parseAddress(hostname) : undefined) ?? hostname,
    user_agent: headers.get("user-agent")?.slice(0, MAX_CHARACTERS) || "unknown",
  };
}

/** With N proxies in front, the Nth address from the right. Clients can forge those before it. */
function findForwarded(headers: Headers, proxies: number): string | undefined {
  if (proxies === 0) return undefined;
  const addresses = headers.get("x-forwarded-for")?.slice(-MAX_CHARACTERS).split(",") ?? [];
  return parseAddress(addresses.at(-proxies)?.trim() ?? "");
}

/** One spelling of an address, without its port; undefined for other text. */
function parseAddress(text: string): string | undefined {
  if (!/^[\da-f:.[\]]+$/i.test(text)) return undefined;
  const [, hostPart] = /^([\d.]+|\[.+\])(?::\d{1,5})?$/.exec(text) ?? [];
  const host = hostPart ?? `[${text}]`; // only IPv6 stands without brackets
  const address = URL.parse(`http://${host}`)?.hostname;
  if (address?.startsWith("[")) return unmapIpv4(address.slice(1, -1));
  return address === host ? address : undefined; // URL makes 127.1 into 127.0.0.1
}

/** `192.0.2.7` for `::ffff:c000:207`, which is how a dual-stack socket shows it. */
function unmapIpv4(ipv6: string): string {
  const [, high, low] = /^::ffff:([\da-f]+):([\da-f]+)$/.exec(ipv6) ?? [];
  if (!high || !low) return ipv6;
  const halves = [parseInt(high, 16), parseInt(low, 16)];
  return halves.flatMap((half) => [half >> 8, half & 255]).join(".");
}

/** Deno makes the URL from Host: `x/health?` would change the path. HTTP/1.0 may lack it. */
function isHost(host: string | null): boolean {
  if (host === null) return true;
  if (host.startsWith("[")) {
    return /^\[[\da-f:.]{2,45}\](?::\d*)?$/i.test(host) && URL.canParse(`http://${host}`);
  }
  const match = /^(?:[\w.~!$&'()*+,;=-]|%[\da-f]{2})+(?::(\d*))?$/i.exec(host);
  return match !== null && Number(match[1] ?? 0) <= 65535;
}

function prefersPage(request: Request): boolean {
  const accept = request.headers.get("accept") ?? "";
  if (accept.length >= MAX_CHARACTERS) return false; // `accepts` is slow on a long one
  return accepts(request, "application/json", "text/html") === "text/html";
}

// ---- Page ----

const STATES = {
  healthy: { mark: "✓", color: "#186a3b", text: "/health answers 200." },
  unhealthy: { mark: "✗", color: "#b3261e", text: "A drill: /health answers 503 until it ends." },
  draining: { mark: "↓", color: "#7a4a00", text: "About to stop: /health answers 503." },
};
const LABELS: Record<string, string> = { cpu_count: "CPUs", client_ip: "Client IP" };
const STYLE = `
:root { color-scheme: light dark; background: Canvas; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 56rem; margin: auto; padding: 1rem; overflow-wrap: anywhere }
body, header, main { display: grid; gap: 1.5rem 2rem }
main { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
h1, h2, p, dl, dd { margin: 0; font-size: 1rem }
h1 { font-size: 1.5rem }
.banner { padding: .5rem; border: solid transparent; color: #fff; print-color-adjust: exact }
${Object.entries(STATES).map(([name, { color }]) => `.${name} { background: ${color} }`).join("\n")}
table, tbody { display: block }
div, tr { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 4px 0; border-top: 1px solid #8886 }
dt { flex: 0 1 9rem }
dd { flex: 1 1 max-content }
th, td { flex: 1 1 4rem; padding: 0; text-align: left }
:is(th, td):last-child { flex: 2 1 7rem }
dt, th, footer { font-weight: normal; opacity: .75 }`;
const DIGEST = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(STYLE));
const STYLE_HASH = new Uint8Array(DIGEST).toBase64();
const PAGE_HEADERS = {
  "content-type": "text/html; charset=utf-8",
  "content-security-policy": `default-src 'none'; style-src 'sha256-${STYLE_HASH}'; ` +
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  ...VARY,
};

function renderPage(facts: ReturnType<typeof collectFacts>, state: keyof typeof STATES): string {
  const { service: { name, description, ...software }, runtime, ...others } = facts;
  const { uptime_seconds, uptime_human, ...moment } = runtime;
  const isYoung = uptime_seconds < 3600; // "0 hours, 0 minutes" would look broken
  const uptime = isYoung ? splitBySixty(uptime_seconds, "minute", "second") : uptime_human;
  const sections = { service: software, runtime: { uptime, ...moment }, ...others };
  const { mark, color, text } = STATES[state];
  const icon = `<svg xmlns="http://www.w3.org/2000/svg"><circle r="150%" fill="${color}"/></svg>`;
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
${Object.entries(sections).map(renderSection).join("\n")}
</main>
<footer>Programs such as curl get JSON at the same address.</footer>
`;
}

function renderSection([name, facts]: [string, object]): string {
  const content = Array.isArray(facts) ? renderTable(facts) : renderList(facts);
  return `<section><h2>${makeLabel(name)}</h2>${content}</section>`;
}

function renderList(facts: object): string {
  const rows = Object.entries(facts).map(([key, value]) =>
    `<div><dt>${makeLabel(key)}</dt><dd>${escapeHtml(value)}</dd></div>`
  );
  return `<dl>${rows.join("\n")}</dl>`;
}

function renderTable(entries: object[]): string {
  const head = Object.keys(entries[0] ?? {}).map((key) => `<th>${makeLabel(key)}</th>`);
  const rows = entries.map((entry) => Object.entries(entry).map(renderCell));
  const lines = [head, ...rows].map((cells) => `<tr>${cells.join("")}</tr>`);
  return `<table>${lines.join("\n")}</table>`;
}

function renderCell([key, value]: [string, unknown]): string {
  const text = escapeHtml(value);
  return `<td>${key === "path" ? `<a href="${text}">${text}</a>` : text}</td>`;
}

function makeLabel(key: string): string {
  return LABELS[key] ?? key.charAt(0).toUpperCase() + key.slice(1).replaceAll("_", " ");
}

function escapeHtml(text: unknown): string {
  return String(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

// ---- Logs ----

type Level = Config["LOG_LEVEL"];

const SEVERITY = { debug: 0, info: 1, warn: 2, error: 3 };
const MAX_QUEUED = 1024 * 1024; // about so many bytes
const BATCH_MILLISECONDS = 10; // a write costs about as much as a request, so lines share it
const RETRY_MILLISECONDS = 20;
const ATOMIC_BYTES = 4096; // PIPE_BUF of Linux: a pipe takes so much whole, or not at all
const TRUSTED_BYTES = 128 * 1024; // twice what a pipe holds, so somebody reads it

/**
 * Writes a line per event. Lines wait in a queue and are written together, asynchronously. If
 * nobody reads them, lines above the limit are dropped and counted; requests are not affected.
 * `sink` gives how many bytes it wrote. If it throws, a pipe took none: the logger tries again.
 */
export function createLogger(config: Config, clock: Clock, sink: Output["write"]) {
  let queue = "";
  let unwritten = new Uint8Array(); // of the lines that left the queue
  let dropped = 0;
  let taken = 0; // bytes so far; after a failure never enough to be trusted
  let writing: Promise<void> | undefined;

  /** `write` asks this too; ask it before you collect costly fields. */
  const isEnabled = (level: Level) => SEVERITY[level] >= SEVERITY[config.LOG_LEVEL];

  /** Never waits, never throws. `msg` is a constant text; `fields` has the values. */
  const write = (level: Level, msg: string, fields: object = {}, moment?: Moment) => {
    if (!isEnabled(level)) return;
    if (queue.length + unwritten.length > MAX_QUEUED) dropped++;
    else queue += format(level, msg, fields, moment);
    writing ??= writeAll();
  };

  /** Waits until all lines are written, but at most `milliseconds`. */
  const flush = (milliseconds: number) => waitAtMost(milliseconds, writing);

  const format = (level: Level, msg: string, fields: object, moment = clock.describe()) => {
    const time = moment.current_time;
    if (config.LOG_FORMAT === "json") {
      return `${stringifySafely({ time, level, msg, ...fields })}\n`;
    }
    return `${time} ${level.toUpperCase().padEnd(5)} ${msg}${formatPairs(fields)}\n`;
  };

  const writeAll = async () => {
    while (queue !== "" || dropped > 0) {
      await sleep(BATCH_MILLISECONDS);
      if (dropped > 0) queue += format("warn", "log lines dropped", { dropped });
      unwritten = new TextEncoder().encode(queue);
      queue = "";
      dropped = 0;
      while (unwritten.length > 0) await writeSome();
    }
    writing = undefined;
  };

  const writeSome = async () => {
    const isTrusted = taken >= TRUSTED_BYTES;
    const some = isTrusted ? unwritten : unwritten.subarray(0, ATOMIC_BYTES);
    const end = some.lastIndexOf("\n".charCodeAt(0)) + 1; // whole lines, so that a stop cuts none
    try {
      const length = await sink(end > 0 ? some.subarray(0, end) : some);
      unwritten = unwritten.subarray(length);
      taken += length;
    } catch {
      taken = -Infinity;
      await sleep(RETRY_MILLISECONDS); // the reader is slow or gone; nobody else can be told
    }
  };

  return { isEnabled, write, flush };
}

function formatPairs(fields: object): string {
  const isPlain = (value: unknown) => /^[\w.:/-]+$/.test(String(value));
  return Object.entries(fields)
    .map(([key, value]) => ` ${key}=${isPlain(value) ? value : stringifySafely(value)}`)
    .join("");
}

/** JSON that is safe in a log line and on a terminal: control and format characters are escaped. */
function stringifySafely(value: unknown): string {
  const escapeUnit = (unit: string) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const escape = (character: string) => character.replace(/[^]/g, escapeUnit); // it may have two
  const json = JSON.stringify(value);
  return /^[ -~]*$/.test(json) ? json : json.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, escape);
}

// ---- Lifecycle ----

const IS_WINDOWS = Deno.build.os === "windows";
const STOP_SIGNALS = { SIGINT: 2, ...IS_WINDOWS ? { SIGBREAK: 21 } : { SIGTERM: 15 } };
const REPEATED_SIGNAL_MILLISECONDS = 100;
const STOP_MILLISECONDS = 100; // what a stop may take without any request
const FLUSH_MILLISECONDS = { inOrder: 1000, atOnce: 100 };
const LISTEN_AGAIN_MILLISECONDS = 200; // between tries; a try that lasts so long has succeeded

/** Serves until the signals say otherwise. Returns the exit code. */
async function serve(config: Config, { stdout, stderr }: Outside): Promise<number> {
  const clock = createClock();
  const log = createLogger(config, clock, (bytes) => stdout.write(bytes));
  const service: Service = { config, system: readSystem(), clock, log, status: "healthy" };
  const { first, second } = listenForStop(service);
  listenForDrill(service);
  const end = await Promise.race([serveUntil(first, service, stderr), second]);
  if (typeof end === "number") return end;
  log.write("warn", "ended at once by a second signal", { signal: end.signal });
  await log.flush(FLUSH_MILLISECONDS.atOnce);
  return end.code;
}

async function serveUntil(stop: Promise<void>, service: Service, stderr: Output): Promise<number> {
  const { config, log } = service;
  try {
    const listener = openListener(service);
    await Promise.race([listener.lost, stop.then(() => sleep(config.DRAIN_SECONDS * 1000))]);
    const limit = config.SHUTDOWN_SECONDS * 1000 + STOP_MILLISECONDS;
    const isInTime = await waitAtMost(limit, listener.stop().then(() => true));
    if (isInTime) log.write("info", "stopped");
    else log.write("warn", "stopped before all requests were finished");
    return isInTime ? 0 : 1;
  } catch (error) {
    return print(stderr, `cannot listen on ${config.HOST} port ${config.PORT}: ${error}`, 1);
  } finally {
    await log.flush(FLUSH_MILLISECONDS.inOrder);
  }
}

/** The `first` signal starts the drain; the `second` ends the process at once, with its code. */
function listenForStop(service: Service) {
  const first = Promise.withResolvers<void>();
  const second = Promise.withResolvers<{ signal: string; code: number }>();
  let last = -Infinity;
  for (const [signal, number] of Object.entries(STOP_SIGNALS)) {
    Deno.addSignalListener(signal as Deno.Signal, () => {
      const time = service.clock.monotonic();
      // `deno task` repeats Ctrl+C, and `--watch` adds SIGTERM
      if (time - last < REPEATED_SIGNAL_MILLISECONDS) return;
      last = time;
      if (service.status === "draining") return second.resolve({ signal, code: 128 + number });
      service.status = "draining";
      service.log.write("info", "draining", { signal, seconds: service.config.DRAIN_SECONDS });
      first.resolve();
    });
  }
  return { first: first.promise, second: second.promise };
}

/** SIGUSR2 switches /health to 503 and back, for drills. Clients cannot do this. */
function listenForDrill(service: Service): void {
  if (IS_WINDOWS) return;
  Deno.addSignalListener("SIGUSR2", () => {
    if (service.status === "draining") return;
    service.status = service.status === "healthy" ? "unhealthy" : "healthy";
    service.log.write("warn", "health switched by hand", { status: service.status });
  });
}

/** Opens the port, and opens it again whenever Deno closed it because file descriptors ran out. */
function openListener(service: Service) {
  const { config: { HOST, PORT }, log } = service;
  const options = { hostname: HOST, port: PORT, automaticCompression: false, onListen() {} };
  const open = () => Deno.serve(options, (request, peer) => handle(service, request, peer));
  let server: Deno.HttpServer<Deno.NetAddr> | undefined = open();
  let isClosing = false;
  const { hostname: address, port } = server.addr;
  options.port = port; // where 0 picked it, `open` must take the same again
  log.write("info", "listening", { address, port, version: ABOUT.version });

  /** Rejects if the port cannot be opened again. */
  const keepOpen = async () => {
    let isPortClosed = false;
    while (!isClosing) {
      try {
        server ??= open();
        if (isPortClosed) await Promise.race([server.finished, sleep(LISTEN_AGAIN_MILLISECONDS)]);
        if (isPortClosed && !isClosing) log.write("info", "accepting connections again");
        isPortClosed = false;
        await server.finished;
      } catch (error) {
        server = undefined; // 2.7.11 hangs when a server that has failed is shut down
        if (!isPortClosed) log.write("error", "cannot accept connections", { error: `${error}` });
        if (!/os error (23|24|10024)\b/.test(`${error}`)) throw error; // ENFILE, EMFILE, WSAEMFILE
        isPortClosed = true;
        await sleep(LISTEN_AGAIN_MILLISECONDS);
      }
    }
  };
  const stop = async () => {
    isClosing = true;
    await server?.shutdown();
  };
  return { lost: keepOpen(), stop };
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
export type Outside = { env: Env; stdout: Output; stderr: Output };
type Output = Pick<typeof Deno.stdout, "write" | "isTerminal">;

const USAGE = `Usage: ${ABOUT.name} [--health | --version | --help]`;
const PROBE_SECONDS = 2;

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
  return option === "--health" ? await probe(config, stdout) : await serve(config, outside);
}

/** Returns `code`, for the caller to return. */
async function print(output: Output, text: string, code: number): Promise<number> {
  const writing = output.write(new TextEncoder().encode(text + "\n"));
  await waitAtMost(FLUSH_MILLISECONDS.inOrder, writing.catch(() => {})); // its reader may be gone
  return code;
}

async function probe({ HOST, PORT }: Config, stdout: Output): Promise<number> {
  // loopback for a wildcard; a container may have no ::1, and :: takes IPv4 as well
  const hostname = HOST === "0.0.0.0" || HOST === "::" ? "127.0.0.1" : HOST;
  const answer = await waitAtMost(PROBE_SECONDS * 1000, askHealth(hostname, PORT).catch(String)) ??
    `no answer within ${PROBE_SECONDS} seconds`;
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
  SIGTERM, SIGINT   drain, shut down, exit; a second one, after 100 ms, exits at once
  SIGUSR2           switch /health between healthy and unhealthy, for drills

Exit codes:
  0                 stopped in order; --health: the answer was 200
  1                 cannot listen, or requests were cut off; --health: any other answer, or none
  2                 a bad variable or argument
  130, 143          a second SIGINT, SIGTERM: ended at once`;
}

if (import.meta.main) Deno.exit(await main(Deno.args, Deno));
