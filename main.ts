/**
 * The DevOps Info Service: `GET /` says what it is and where it runs, `GET /health` whether it is well.
 *
 * Data flows one way: environment → {@linkcode Config} → {@linkcode Service} → `Response`. Only
 * {@linkcode main} and what it starts read the environment, the clock and the machine.
 *
 * @module
 */
import { accepts } from "@std/http/negotiation";
import { STATUS_CODE, STATUS_TEXT } from "@std/http/status";
import project from "./deno.json" with { type: "json" };

// ---- What it is ----

const SERVICE = {
  name: project.name,
  version: project.version,
  description: "DevOps course info service",
  framework: "Deno.serve",
};

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

// ---- Configuration ----

function oneOf<T extends string>(help: string, fallback: NoInfer<T>, values: T[]) {
  const parse = (text: string) => values.find((value) => value === text);
  return { help, fallback, allowed: values.join(", "), parse };
}

function wholeNumber(help: string, fallback: number, max: number) {
  const parse = (text: string) => /^\d{1,5}$/.test(text) && Number(text) <= max ? Number(text) : undefined;
  return { help, fallback, allowed: `0–${max}`, parse };
}

const VARIABLES = {
  HOST: oneOf("address to listen on", "0.0.0.0", ["0.0.0.0", "::", "127.0.0.1", "::1", "localhost"]),
  PORT: wholeNumber("port to listen on; 0 takes a free one", 5000, 65535),
  LOG_LEVEL: oneOf("least level that is logged", "info", ["debug", "info", "warn", "error"]),
  LOG_FORMAT: oneOf("form of a log line; text on a terminal", "json", ["json", "text"]),
  TRUST_PROXY: wholeNumber("proxies in front whose X-Forwarded-For is believed", 0, 16),
  DRAIN_SECONDS: wholeNumber("after a signal, serve on as draining for so long", 0, 300),
  SHUTDOWN_SECONDS: wholeNumber("then let running requests finish for so long", 8, 300),
};

/** What the environment says, checked and complete: a key for each variable. */
export type Config = {
  readonly [Name in keyof typeof VARIABLES]: (typeof VARIABLES)[Name]["fallback"];
};

/**
 * Makes the configuration out of the environment.
 *
 * @param get looks a variable up; an empty one counts as unset
 * @param isTerminal whether standard output is a terminal, so that people read the log
 * @returns the value of every variable, or its default
 * @throws {RangeError} when values are not allowed: a line for each, with what is
 */
export function parseConfig(get: (name: string) => string | undefined, isTerminal: boolean): Config {
  const problems: string[] = [];
  const entries = Object.entries(VARIABLES).map(([name, { fallback, allowed, parse }]) => {
    const text = get(name);
    if (!text) return [name, isTerminal && name === "LOG_FORMAT" ? "text" : fallback];
    const value = parse(text);
    if (value === undefined) problems.push(`${name}=${printable(text)}: allowed is ${allowed}`);
    return [name, value];
  });
  if (problems.length > 0) throw new RangeError(problems.join("\n"));
  return Object.fromEntries(entries);
}

// ---- The two routes ----

/** All that an answer depends on, beside the request. */
export interface Service {
  readonly config: Config;
  readonly system: ReturnType<typeof readSystem>;
  readonly clock: Clock;
  readonly log: Logger;
  /** What `GET /health` says. */
  status: Status;
  /** The answers of this millisecond. */
  prepared?: Prepared;
}

type Status = "healthy" | "unhealthy" | "draining";

/** Where the time comes from, so that a test can say how late it is. */
export interface Clock {
  /** The wall clock, as RFC 3339 to the millisecond: for people, and it may jump. */
  timestamp(): string;
  /** Milliseconds since the process started: never jumps. */
  monotonic(): number;
}

/** One request on its way through the service. */
interface Exchange {
  readonly service: Service;
  readonly request: Request;
  readonly connection: Connection;
  readonly path: string;
  /** When it came, on the monotonic clock. */
  readonly start: number;
  client?: { readonly client_ip: string; readonly user_agent: string };
}

/** The part of `Deno.ServeHandlerInfo` that is used, and only when it is, since reading it costs. */
export interface Connection {
  readonly remoteAddr: { readonly hostname: string };
}

interface Route {
  readonly description: string;
  answer(exchange: Exchange): Response;
}

const ROUTES = new Map<string, Route>([
  ["/", { description: "Service information", answer: information }],
  ["/health", { description: "Health check", answer: health }],
]);
const ENDPOINTS = Array.from(ROUTES, ([path, { description }]) => ({ path, method: "GET", description }));

const ALLOW = "GET, HEAD, OPTIONS";
const CONTENT_TYPE = { "content-type": "application/json; charset=utf-8" };
const ANSWER_HEADERS = headersByStatus(CONTENT_TYPE);
const INFORMATION_HEADERS = headersByStatus({ ...CONTENT_TYPE, vary: "accept" });
const OPTIONS_HEADERS = headersByStatus({ allow: ALLOW });
const NOT_ALLOWED_HEADERS = headersByStatus({ ...CONTENT_TYPE, allow: ALLOW });

function headersByStatus(headers: Record<string, string>): Record<Status, HeadersInit> {
  const open = { ...headers, "cache-control": "no-store", "x-content-type-options": "nosniff" };
  return { healthy: open, unhealthy: open, draining: { ...open, connection: "close" } };
}

/** Both answers, but for what is the request's own. */
interface Prepared {
  readonly millisecond: number;
  readonly status: Status;
  readonly health: string;
  readonly information: readonly string[];
}

/** Where the request's own part goes; no string can contain it, since JSON escapes quotes. */
const REQUEST = '"request":null';

/** Time to the millisecond is all that changes, so under load a hundred requests share this work. */
function prepare(service: Service, start: number): Prepared {
  const { status, system, clock, prepared } = service;
  const millisecond = Math.floor(start);
  if (prepared?.millisecond === millisecond && prepared.status === status) return prepared;
  const uptime_seconds = Math.floor(start / 1000);
  const time = clock.timestamp();
  const health = { status, timestamp: time, uptime_seconds };
  const information = {
    service: SERVICE,
    system,
    runtime: {
      uptime_seconds,
      uptime_human: humanUptime(uptime_seconds),
      current_time: time,
      timezone: "UTC", // which current_time is in
    },
    request: null,
    endpoints: ENDPOINTS,
  };
  return service.prepared = {
    millisecond,
    status,
    health: toLine(health),
    information: toLine(information).split(REQUEST),
  };
}

function information(exchange: Exchange): Response {
  const { service, request, start } = exchange;
  const { status } = service;
  // HEAD is told the length of what GET gets
  const own = { ...clientOf(exchange), method: "GET", path: "/" };
  const body = prepare(service, start).information.join(`"request":${JSON.stringify(own)}`);
  if (accepts(request, "application/json", "text/html") === "text/html") {
    return new Response(page(JSON.parse(body), status), { headers: PAGE_HEADERS[status] });
  }
  return new Response(body, { headers: INFORMATION_HEADERS[status] });
}

function health({ service, start }: Exchange): Response {
  return new Response(prepare(service, start).health, {
    status: service.status === "healthy" ? STATUS_CODE.OK : STATUS_CODE.ServiceUnavailable,
    headers: ANSWER_HEADERS[service.status],
  });
}

/**
 * Answers a request and logs it.
 *
 * @param service what the answer depends on
 * @param request the request, whose body is never read
 * @param connection which it came on
 * @returns the answer; where we fail, a 500 that says nothing of the cause, which is logged
 */
export function handle(service: Service, request: Request, connection: Connection): Response {
  const { clock, log } = service;
  const start = clock.monotonic();
  const path = pathOf(request.url);
  const exchange: Exchange = { service, request, connection, path, start };
  let response: Response;
  let failure = {};
  try {
    response = route(exchange);
  } catch (error) {
    failure = { error: Deno.inspect(error) };
    response = errorAnswer(service, STATUS_CODE.InternalServerError, "An unexpected error occurred");
  }
  const isGoodProbe = path === "/health" && response.ok;
  const level = response.status >= 500 ? "error" : isGoodProbe ? "debug" : "info";
  if (log.writes(level)) {
    log.write(level, "request", {
      method: request.method,
      path,
      status: response.status,
      duration_ms: Math.round((clock.monotonic() - start) * 1000) / 1000,
      ...clientOf(exchange),
      ...failure,
    });
  }
  return response;
}

function route(exchange: Exchange): Response {
  const { service, request, path } = exchange;
  const { method } = request;
  if (!isHost(request.headers.get("host"))) {
    return errorAnswer(service, STATUS_CODE.BadRequest, "Host is not valid");
  }
  const found = ROUTES.get(path);
  if (method === "OPTIONS" && (found || path === "/*")) {
    const { status } = service;
    return new Response(null, { status: STATUS_CODE.NoContent, headers: OPTIONS_HEADERS[status] });
  }
  if (!found) return errorAnswer(service, STATUS_CODE.NotFound, "Endpoint does not exist");
  if (method === "GET" || method === "HEAD") return found.answer(exchange);
  const message = `Endpoint allows ${ALLOW}`;
  return errorAnswer(service, STATUS_CODE.MethodNotAllowed, message, NOT_ALLOWED_HEADERS);
}

/**
 * RFC 9110, section 4.2: a host that is not empty, and a port. The runtime makes the URL of it, and
 * `Host: x/health?` would move the path. HTTP/1.0, which load balancers probe with, has none.
 */
function isHost(host: string | null): boolean {
  return host === null || /^[\w.~!$&'()*+,;=-]+(?::\d{0,5})?$/.test(host) ||
    /^(?:\[[\da-f:.]+\]|(?:[\w.~!$&'()*+,;=-]|%[\da-f]{2})+)(?::\d{0,5})?$/i.test(host) &&
      URL.canParse(`http://${host}`);
}

/** The path as it was sent: `new URL` would make `/health` of `/%2e%2e/health`. */
function pathOf(url: string): string {
  const hierarchy = before("?", before("#", url));
  const start = hierarchy.indexOf("/", hierarchy.indexOf("//") + 2);
  return start < 0 ? "/" : hierarchy.slice(start);
}

function before(delimiter: string, text: string): string {
  const end = text.indexOf(delimiter);
  return end < 0 ? text : text.slice(0, end);
}

type ErrorCode = number & keyof typeof STATUS_TEXT;

function errorAnswer({ status }: Service, code: ErrorCode, message: string, headers = ANSWER_HEADERS) {
  const body = toLine({ error: STATUS_TEXT[code], message });
  return new Response(body, { status: code, headers: headers[status] });
}

function toLine(value: unknown): string {
  return JSON.stringify(value) + "\n";
}

function clientOf(exchange: Exchange) {
  if (exchange.client) return exchange.client;
  const { service, request: { headers }, connection } = exchange;
  // behind N proxies, what the outermost of them saw; a client writes what it likes left of that
  const proxies = service.config.TRUST_PROXY;
  const seen = proxies > 0 && headers.get("x-forwarded-for")?.split(",").at(-proxies)?.trim();
  const address = seen && isAddress(seen) ? seen : connection.remoteAddr.hostname;
  return exchange.client = {
    client_ip: address.replace(/^::ffff:(?=[\d.]+$)/i, ""), // how a dual-stack socket shows IPv4
    user_agent: headers.get("user-agent") || "unknown",
  };
}

function isAddress(text: string): boolean {
  return /^[\d.]+$/.test(text)
    ? URL.parse(`http://${text}`)?.hostname === text
    : /^[\da-f:.]+$/i.test(text) && URL.canParse(`http://[${text}]`);
}

function humanUptime(seconds: number): string {
  const count = (n: number, unit: string) => `${n} ${unit}${n === 1 ? "" : "s"}`;
  const minutes = Math.floor(seconds / 60);
  return `${count(Math.floor(minutes / 60), "hour")}, ${count(minutes % 60, "minute")}`;
}

// ---- The page: what GET / answers, for people ----

const STYLE = `
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: auto; padding: 1rem }
header { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: center }
h1, h2 { margin: 0; line-height: 1.2 }
h2 { font-size: 1rem; text-transform: capitalize }
header p { flex-basis: 100%; margin: .5rem 0 1rem }
strong { padding: .1rem .8rem; border-radius: 1rem; color: #fff; background: #b3261e }
.healthy { background: #186a3b }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem }
section { padding: 1rem; border: 1px solid #8886; border-radius: .5rem }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0 1rem; margin: .5rem 0 0 }
dt { opacity: .75 }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace }`;
const STYLE_HASH = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(STYLE));
const PAGE_HEADERS = headersByStatus({
  "content-type": "text/html; charset=utf-8",
  "content-security-policy": `default-src 'none'; style-src 'sha256-${
    btoa(String.fromCharCode(...new Uint8Array(STYLE_HASH)))
  }'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
  "referrer-policy": "no-referrer",
  vary: "accept",
});

type Section = Record<string, unknown>;

function page({ service, ...sections }: Record<string, Section | Section[]>, status: Status): string {
  const { name, description, ...rest } = service as Section;
  const color = status === "healthy" ? "186a3b" : "b3261e";
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escape(name)}: ${status}</title>
<link rel="icon" href="data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 2 2'>\
<circle cx='1' cy='1' r='1' fill='%23${color}'/></svg>">
<style>${STYLE}</style>
</head>
<body>
<header><h1>${escape(name)}</h1><strong class="${status}">${status}</strong><p>${
    escape(description)
  }</p></header>
<main>
${Object.entries({ service: rest, ...sections }).map(section).join("\n")}
</main>
</body>
</html>
`;
}

function section([title, content]: [string, Section | Section[]]): string {
  return `<section><h2>${escape(title)}</h2>${[content].flat().map(list).join("")}</section>`;
}

function list(content: Section): string {
  const items = Object.entries(content).map(([key, value]) =>
    `<dt>${escape(key.replaceAll("_", " "))}</dt><dd>${escape(value)}</dd>`
  );
  return `<dl>${items.join("")}</dl>`;
}

function escape(text: unknown): string {
  return String(text).replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

// ---- Logs ----

const SEVERITY = { debug: 0, info: 1, warn: 2, error: 3 };
const MAX_QUEUED_CHARACTERS = 1024 * 1024;
const BATCH_MILLISECONDS = 10;

type Telemetry = (level: Config["LOG_LEVEL"], line: string) => void;

/**
 * Writes a line per event. Lines wait in a bounded queue and are written together, asynchronously: a
 * reader that stops reading costs lines, which are counted, and never a request.
 */
export class Logger {
  #queue = "";
  #dropped = 0;
  #isTorn = false;
  #writing: Promise<void> | undefined;

  /**
   * @param config which lines to write, and in which form
   * @param clock tells the time of a line
   * @param sink writes some of the bytes and returns how many, as `Deno.stdout.write` does
   * @param telemetry takes a line as well, on the spot, where it has the trace of the request
   */
  constructor(
    private readonly config: Pick<Config, "LOG_LEVEL" | "LOG_FORMAT">,
    private readonly clock: Clock,
    private readonly sink: (bytes: Uint8Array) => Promise<number>,
    private readonly telemetry?: Telemetry,
  ) {}

  /**
   * Says whether a level is logged, before anything is spent on a line.
   *
   * @param level of the line
   * @returns whether `LOG_LEVEL` lets it through
   */
  writes(level: Config["LOG_LEVEL"]): boolean {
    return SEVERITY[level] >= SEVERITY[this.config.LOG_LEVEL];
  }

  /**
   * Queues a line; never waits, never throws.
   *
   * @param level of the line
   * @param msg what happened, in constant words
   * @param fields the particulars
   */
  write(level: Config["LOG_LEVEL"], msg: string, fields: Record<string, unknown> = {}): void {
    if (!this.writes(level)) return;
    const line = this.#format(level, msg, fields);
    this.telemetry?.(level, line);
    if (this.#queue.length > MAX_QUEUED_CHARACTERS) {
      this.#dropped++;
      return;
    }
    this.#queue += line + "\n";
    this.#writing ??= this.#writeQueue();
  }

  /**
   * Waits until what is queued is written.
   *
   * @param milliseconds how long to wait for a reader that does not read
   */
  async flush(milliseconds: number): Promise<void> {
    await within(milliseconds, this.#writing ?? Promise.resolve());
  }

  #format(level: Config["LOG_LEVEL"], msg: string, fields: Record<string, unknown>): string {
    const time = this.clock.timestamp();
    return this.config.LOG_FORMAT === "json"
      ? printable({ time, level, msg, ...fields })
      : `${time} ${level.toUpperCase().padEnd(5)} ${msg}${pairs(fields)}`;
  }

  async #writeQueue(): Promise<void> {
    const encoder = new TextEncoder();
    while (this.#queue !== "" || this.#dropped > 0) {
      await sleep(BATCH_MILLISECONDS); // a write costs about as much as a request: share it
      const reported = this.#dropped;
      const notice = reported > 0 ? this.#format("warn", "log lines dropped", { dropped: reported }) : "";
      const lines = encoder.encode(this.#queue + (notice && notice + "\n"));
      this.#queue = "";
      let written = 0;
      try {
        if (this.#isTorn) await this.sink(encoder.encode("\n"));
        while (written < lines.length) {
          written += await this.sink(lines.subarray(written));
          this.#isTorn = lines[written - 1] !== "\n".charCodeAt(0);
        }
        this.#dropped -= reported;
      } catch { // the reader is gone, and nobody else can be told
        const unwritten = new TextDecoder().decode(lines.subarray(written)) + this.#queue;
        this.#dropped += unwritten.split("\n").length - 1 - (notice ? 1 : 0);
        this.#queue = "";
        break;
      }
    }
    this.#writing = undefined;
  }
}

function pairs(fields: Record<string, unknown>): string {
  const text = (value: unknown) => /^[\w.:/-]+$/.test(`${value}`) ? value : printable(value);
  return Object.entries(fields).map(([key, value]) => ` ${key}=${text(value)}`).join("");
}

/** JSON that neither breaks a line nor steers a terminal: control and direction characters escaped. */
function printable(value: unknown): string {
  return JSON.stringify(value).replace(
    /[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

// ---- Life and death ----

const STOP_SIGNALS: [Deno.Signal, number][] = [
  ["SIGINT", 2],
  Deno.build.os === "windows" ? ["SIGBREAK", 21] : ["SIGTERM", 15],
];
const DRILL_SIGNAL = "SIGUSR2";
const FLUSH_MILLISECONDS = 1000;
const LAST_FLUSH_MILLISECONDS = 100;
const LISTEN_AGAIN_MILLISECONDS = 200;

async function serve(config: Config): Promise<number> {
  const clock = systemClock();
  const telemetry: Telemetry | undefined = hasTelemetry() ? (level, line) => console[level](line) : undefined;
  const log = new Logger(config, clock, (bytes) => Deno.stdout.write(bytes), telemetry);
  const service: Service = { config, system: readSystem(), clock, log, status: "healthy" };

  const stop = Promise.withResolvers<Deno.Signal>();
  let stopSignals = 0;
  for (const [signal, number] of STOP_SIGNALS) {
    Deno.addSignalListener(signal, async () => {
      if (++stopSignals === 1) return stop.resolve(signal);
      await log.flush(LAST_FLUSH_MILLISECONDS);
      Deno.exit(128 + number);
    });
  }

  if (Deno.build.os !== "windows") {
    Deno.addSignalListener(DRILL_SIGNAL, () => {
      if (service.status === "draining") return;
      service.status = service.status === "healthy" ? "unhealthy" : "healthy";
      log.write("warn", "health switched by hand", { status: service.status });
    });
  }

  let server: Deno.HttpServer<Deno.NetAddr>;
  let isClosing = false;
  const listen = (port: number): Deno.HttpServer<Deno.NetAddr> => {
    const opened = Deno.serve({
      hostname: config.HOST,
      port,
      onListen({ hostname, port }) {
        log.write("info", "listening", { address: hostname, port, version: SERVICE.version });
      },
    }, (request, connection) => handle(service, request, connection));
    opened.finished.catch(listenAgain);
    return opened;
  };
  // without a file descriptor left the runtime closes its listener, of which a service need not die
  const listenAgain = async (error: unknown): Promise<void> => {
    log.write("error", "cannot accept connections", { error: `${error}` });
    await sleep(LISTEN_AGAIN_MILLISECONDS);
    if (isClosing) return;
    try {
      server = listen(server.addr.port);
    } catch (error) {
      await listenAgain(error);
    }
  };
  try {
    server = listen(config.PORT);
  } catch (error) {
    print(Deno.stderr, `cannot listen on ${config.HOST} port ${config.PORT}: ${error}`);
    return 1;
  }

  const signal = await stop.promise;
  service.status = "draining";
  log.write("info", "draining", { signal, seconds: config.DRAIN_SECONDS });
  await sleep(config.DRAIN_SECONDS * 1000);
  isClosing = true;
  const inTime = await within(config.SHUTDOWN_SECONDS * 1000, server.shutdown().then(() => true));
  if (inTime) log.write("info", "stopped");
  else log.write("warn", "stopped before all requests were finished");
  await log.flush(FLUSH_MILLISECONDS);
  return inTime ? 0 : 1;
}

/**
 * Whether the runtime exports OpenTelemetry, which is decided when it starts or when it was compiled
 * (`OTEL_DENO`). It takes logs from the console alone, and keeps them from standard output with
 * `OTEL_DENO_CONSOLE=replace`.
 */
function hasTelemetry(): boolean {
  try {
    Deno.telemetry.meterProvider.getMeter(SERVICE.name).createCounter("unused"); // throws without
    return true;
  } catch {
    return false;
  }
}

function systemClock(): Clock {
  let last = 0;
  let text = "";
  const timestamp = () => {
    const now = Date.now();
    if (now !== last) [last, text] = [now, new Date(now).toISOString()]; // formatting is what costs
    return text;
  };
  return { timestamp, monotonic: () => performance.now() };
}

function sleep(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

async function within<T>(milliseconds: number, promise: Promise<T>): Promise<T | undefined> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => resolve(undefined), milliseconds);
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// ---- Probe and command line ----

const PROBE_SECONDS = 2;

async function probe({ HOST, PORT }: Config): Promise<number> {
  // loopback for a wildcard; a container may have no ::1, and :: takes IPv4 as well
  const hostname = HOST === "0.0.0.0" || HOST === "::" ? "127.0.0.1" : HOST;
  const late = `no answer within ${PROBE_SECONDS} seconds`;
  const answer = await within(PROBE_SECONDS * 1000, ask(hostname, PORT).catch(String)) ?? late;
  const line = answer.replace(/[^\x20-\x7e]+/g, " ").trim().slice(0, 200); // who knows what answered
  const healthy = line.startsWith("200 ");
  print(Deno.stdout, healthy ? line : `${hostname} port ${PORT}: ${line}`);
  return healthy ? 0 : 1;
}

/** By a bare socket: `fetch` would go through the proxy that `HTTP_PROXY` names, and cost more. */
async function ask(hostname: string, port: number): Promise<string> {
  const connection = await Deno.connect({ hostname, port });
  const request = `GET /health HTTP/1.0\r\nUser-Agent: ${SERVICE.name}/${SERVICE.version}\r\n\r\n`;
  await connection.write(new TextEncoder().encode(request));
  const answer = await new Response(connection.readable).text();
  const [, code, body] = /^HTTP\/1\.\d (\d{3})\b.*?\r\n\r\n(.*)/s.exec(answer) ?? [];
  return code ? `${code} ${body}` : `no HTTP: ${answer}`;
}

const USAGE = `Usage: ${SERVICE.name} [--health | --version | --help]`;

function help(): string {
  const variables = Object.entries(VARIABLES).map(([name, { help, fallback, allowed }]) =>
    `  ${name.padEnd(18)}${help}\n${" ".repeat(20)}${allowed} (default ${fallback})`
  );
  return `${SERVICE.name} ${SERVICE.version}: ${SERVICE.description}

${USAGE}
  no argument       serve GET / and GET /health until SIGINT or SIGTERM
  --health          ask the running service how it is
  --version         print the version
  --help            print this

Environment:
${variables.join("\n")}

Signals:
  SIGTERM, SIGINT   drain, shut down, end; a second one ends at once
  SIGUSR2           switch /health between healthy and unhealthy, for drills

Exit codes:
  0                 stopped in order; --health: the answer was 200
  1                 cannot listen, or requests were cut off; --health: anything else
  2                 a bad variable or argument
  130, 143          a second SIGINT, SIGTERM: ended at once`;
}

/**
 * The command: serves, probes, or says what it is.
 *
 * @param args the command line without the program's name
 * @returns the exit code
 */
export async function main(args: readonly string[]): Promise<number> {
  const [option, ...rest] = args;
  const run = option === undefined ? serve : option === "--health" ? probe : undefined;
  if (rest.length === 0 && (option === "--version" || option === "--help")) {
    print(Deno.stdout, option === "--help" ? help() : `${SERVICE.name} ${SERVICE.version}`);
    return 0;
  }
  if (run === undefined || rest.length > 0) {
    print(Deno.stderr, `${USAGE}, not ${printable(args.join(" "))}`);
    return 2;
  }
  let config: Config;
  try {
    config = parseConfig(readVariable, Deno.stdout.isTerminal());
  } catch (error) {
    print(Deno.stderr, (error as Error).message);
    return 2;
  }
  return await run(config);
}

/** Not by the console, which telemetry may have taken over. */
function print(stream: typeof Deno.stdout | typeof Deno.stderr, text: string): void {
  try {
    stream.writeSync(new TextEncoder().encode(text + "\n"));
  } catch {
    // nobody reads
  }
}

function readVariable(name: string): string | undefined {
  try {
    return Deno.env.get(name);
  } catch {
    return "\ufffd"; // no Unicode, so no value that is allowed
  }
}

if (import.meta.main) Deno.exit(await main(Deno.args));
