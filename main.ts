/**
 * The DevOps Info Service: `GET /` says what it is and where it runs, `GET /health` whether it is well.
 *
 * Data flows one way: environment → {@linkcode Config} → {@linkcode Service} → `Response`. Only
 * {@linkcode main} and what it starts read the environment, the clock and the machine.
 *
 * @module
 */
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
  const parse = (text: string) =>
    /^\d{1,5}$/.test(text) && Number(text) <= max ? Number(text) : undefined;
  return { help, fallback, allowed: `0–${max}`, parse };
}

const VARIABLES = {
  HOST: oneOf("address to listen on", "0.0.0.0", [
    "0.0.0.0",
    "::",
    "127.0.0.1",
    "::1",
    "localhost",
  ]),
  PORT: wholeNumber("port to listen on; 0 takes a free one", 5000, 65535),
  LOG_LEVEL: oneOf("least level that is logged", "info", ["debug", "info", "warn", "error"]),
  LOG_FORMAT: oneOf("form of a log line; text on a terminal", "json", [
    "json",
    "text",
  ]),
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
export function parseConfig(
  get: (name: string) => string | undefined,
  isTerminal: boolean,
): Config {
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
  status: "healthy" | "draining";
}

/** Where the time comes from, so that a test can say how late it is. */
export interface Clock {
  /** Wall clock, in milliseconds since 1970: for people, and it may jump. */
  now(): number;
  /** Milliseconds since the process started: never jumps. */
  monotonic(): number;
}

interface Route {
  readonly description: string;
  answer(service: Service, request: Request, peer: string): Response;
}

const ROUTES = new Map<string, Route>([
  ["/", { description: "Service information", answer: information }],
  ["/health", { description: "Health check", answer: health }],
]);

function information(service: Service, request: Request, peer: string): Response {
  const uptime = uptimeSeconds(service.clock);
  return json(service, STATUS_CODE.OK, {
    service: SERVICE,
    system: service.system,
    runtime: {
      uptime_seconds: uptime,
      uptime_human: humanUptime(uptime),
      current_time: timestamp(service.clock),
      timezone: "UTC",
    },
    request: {
      client_ip: clientIp(service, request, peer),
      user_agent: userAgent(request),
      method: request.method,
      path: "/",
    },
    endpoints: ENDPOINTS,
  });
}

const ENDPOINTS = Array.from(
  ROUTES,
  ([path, { description }]) => ({ path, method: "GET", description }),
);

function health(service: Service): Response {
  const healthy = service.status === "healthy";
  return json(service, healthy ? STATUS_CODE.OK : STATUS_CODE.ServiceUnavailable, {
    status: service.status,
    timestamp: timestamp(service.clock),
    uptime_seconds: uptimeSeconds(service.clock),
  });
}

/**
 * Answers a request and logs it.
 *
 * @param service what the answer depends on
 * @param request the request, whose body is never read
 * @param peer IP address at the other end of the connection
 * @returns the answer; where we fail, a 500 that says nothing of the cause, which is logged
 */
export function handle(service: Service, request: Request, peer: string): Response {
  const { clock, log } = service;
  const start = clock.monotonic();
  const path = pathOf(request.url);
  let response: Response;
  let failure = {};
  try {
    response = route(service, request, peer, path);
  } catch (error) {
    failure = { error: Deno.inspect(error) };
    const { InternalServerError } = STATUS_CODE;
    response = refuse(service, InternalServerError, "An unexpected error occurred");
  }
  const isProbe = path === "/health" && response.ok;
  const level = response.status >= 500 ? "error" : isProbe ? "debug" : "info";
  if (log.writes(level)) {
    log.write(level, "request", {
      method: request.method,
      path,
      status: response.status,
      duration_ms: Math.round((clock.monotonic() - start) * 1000) / 1000,
      client_ip: clientIp(service, request, peer),
      user_agent: userAgent(request),
      ...failure,
    });
  }
  return response;
}

function route(service: Service, request: Request, peer: string, path: string): Response {
  // only a Host that is there can be bad: HTTP/1.0, which load balancers probe with, has none
  const host = request.headers.get("host");
  if (host !== null && !HOST.test(host)) {
    return refuse(service, STATUS_CODE.BadRequest, "Host is not valid");
  }
  const found = ROUTES.get(path);
  if (request.method === "OPTIONS" && (found || path === "/*")) {
    const headers = { ...headersOf(service), ...ALLOW };
    return new Response(null, { status: STATUS_CODE.NoContent, headers });
  }
  if (!found) return refuse(service, STATUS_CODE.NotFound, "Endpoint does not exist");
  if (request.method !== "GET" && request.method !== "HEAD") {
    const message = `Endpoint allows ${ALLOW.allow}`;
    return refuse(service, STATUS_CODE.MethodNotAllowed, message, ALLOW);
  }
  return found.answer(service, request, peer);
}

/** RFC 9110, section 4.2: a host that is not empty, and a port. */
const HOST = /^(?:[\w.~!$&'()*+,;=%-]+|\[[\da-f:.]+\])(?::\d{0,5})?$/i;
const ALLOW = { allow: "GET, HEAD, OPTIONS" };

/**
 * The path as it was sent. `new URL` would make `/health` of `/%2e%2e/health`, and the runtime makes
 * the URL of the `Host`, which is why a bad one is refused.
 */
function pathOf(url: string): string {
  const [beforeQuery = ""] = url.split("?", 1);
  const start = beforeQuery.indexOf("/", beforeQuery.indexOf("//") + 2);
  return start < 0 ? "/" : beforeQuery.slice(start);
}

type Status = number & keyof typeof STATUS_TEXT;

function refuse(service: Service, status: Status, message: string, extra = {}): Response {
  return json(service, status, { error: STATUS_TEXT[status], message }, extra);
}

function json(service: Service, status: number, body: unknown, extra = {}): Response {
  const type = { "content-type": "application/json; charset=utf-8" };
  const headers = { ...type, ...headersOf(service), ...extra };
  return new Response(JSON.stringify(body) + "\n", { status, headers });
}

function headersOf({ status }: Service) {
  return status === "healthy" ? HEADERS : LAST_HEADERS;
}

const HEADERS = { "cache-control": "no-store", "x-content-type-options": "nosniff" };
const LAST_HEADERS = { ...HEADERS, connection: "close" };

/** Behind N proxies, what the outermost of them saw; a client writes what it likes left of that. */
function clientIp({ config: { TRUST_PROXY } }: Service, request: Request, peer: string): string {
  const forwarded = TRUST_PROXY > 0 && request.headers.get("x-forwarded-for");
  const entry = forwarded && forwarded.split(",").at(-TRUST_PROXY)?.trim();
  const address = entry && isAddress(entry) ? entry : peer;
  return address.replace(/^::ffff:(?=[\d.]+$)/i, ""); // how a dual-stack socket shows an IPv4 peer
}

function isAddress(text: string): boolean {
  const octets = text.split(".");
  return /^[\d.]+$/.test(text)
    ? octets.length === 4 && octets.every((octet) => octet !== "" && Number(octet) <= 255)
    : /^[\da-f:.]+$/i.test(text) && URL.canParse(`http://[${text}]`);
}

function userAgent(request: Request): string {
  return request.headers.get("user-agent") || "unknown";
}

function uptimeSeconds(clock: Clock): number {
  return Math.floor(clock.monotonic() / 1000);
}

function humanUptime(seconds: number): string {
  const count = (n: number, unit: string) => `${n} ${unit}${n === 1 ? "" : "s"}`;
  const minutes = Math.floor(seconds / 60);
  return `${count(Math.floor(minutes / 60), "hour")}, ${count(minutes % 60, "minute")}`;
}

function timestamp(clock: Clock): string {
  return new Date(clock.now()).toISOString();
}

// ---- Logs ----

/**
 * Writes a line per event. Lines wait in a bounded queue and are written together, asynchronously: a
 * reader that stops reading costs lines, which are counted, and never a request.
 */
export class Logger {
  #queue: string[] = [];
  #queuedLength = 0;
  #dropped = 0;
  #writing: Promise<void> | undefined;

  /**
   * @param config which lines to write, and in which form
   * @param clock tells the time of a line
   * @param sink writes some of the bytes and returns how many, as `Deno.stdout.write` does
   */
  constructor(
    private readonly config: Pick<Config, "LOG_LEVEL" | "LOG_FORMAT">,
    private readonly clock: Clock,
    private readonly sink: (bytes: Uint8Array) => Promise<number>,
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
    if (this.#queuedLength + line.length > QUEUE_LENGTH) this.#dropped++;
    else this.#enqueue(line);
  }

  #format(level: Config["LOG_LEVEL"], msg: string, fields: Record<string, unknown>): string {
    const time = timestamp(this.clock);
    return this.config.LOG_FORMAT === "json"
      ? printable({ time, level, msg, ...fields })
      : [time, level.toUpperCase().padEnd(5), msg, ...pairs(fields)].join(" ");
  }

  #enqueue(line: string): void {
    this.#queue.push(line + "\n");
    this.#queuedLength += line.length;
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

  async #writeQueue(): Promise<void> {
    const encoder = new TextEncoder();
    while (this.#queue.length > 0) {
      await Promise.resolve(); // what this turn of the event loop still logs goes along
      const lines = this.#queue;
      this.#queue = [];
      this.#queuedLength = 0;
      try {
        let bytes = encoder.encode(lines.join(""));
        while (bytes.length > 0) bytes = bytes.subarray(await this.sink(bytes));
      } catch { // the reader is gone and nobody else can be told; the next line tries again
        this.#dropped += lines.length;
        break;
      }
      if (this.#dropped > 0) {
        this.#enqueue(this.#format("warn", "log lines dropped", { dropped: this.#dropped }));
        this.#dropped = 0;
      }
    }
    this.#writing = undefined;
  }
}

const SEVERITY = { debug: 0, info: 1, warn: 2, error: 3 };
const QUEUE_LENGTH = 1024 * 1024;

function pairs(fields: Record<string, unknown>): string[] {
  return Object.entries(fields).map(([key, value]) =>
    `${key}=${/^[\w.:/-]+$/.test(`${value}`) ? value : printable(value)}`
  );
}

/** JSON that neither breaks a line nor steers a terminal: control and direction characters escaped. */
function printable(value: unknown): string {
  return JSON.stringify(value).replace(
    /[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

// ---- Life and death ----

const FLUSH_MILLISECONDS = 1000;
const STOP_SIGNALS: [Deno.Signal, number][] = [
  ["SIGINT", 2],
  Deno.build.os === "windows" ? ["SIGBREAK", 21] : ["SIGTERM", 15],
];

async function serve(config: Config): Promise<number> {
  const clock = { now: () => Date.now(), monotonic: () => performance.now() };
  const log = new Logger(config, clock, (bytes) => Deno.stdout.write(bytes));
  const service: Service = { config, system: readSystem(), clock, log, status: "healthy" };
  const stopSignal = nextStopSignal();
  let server: Deno.HttpServer;
  try {
    server = Deno.serve({
      hostname: config.HOST,
      port: config.PORT,
      onListen({ hostname, port }) {
        log.write("info", "listening", { address: hostname, port, version: SERVICE.version });
      },
    }, (request, { remoteAddr }) => handle(service, request, remoteAddr.hostname));
  } catch (error) {
    console.error(`cannot listen on ${config.HOST} port ${config.PORT}: ${error}`);
    return 1;
  }

  const [signal] = await stopSignal;
  nextStopSignal().then(async ([, number]) => {
    await log.flush(FLUSH_MILLISECONDS);
    Deno.exit(128 + number);
  });
  service.status = "draining";
  log.write("info", "draining", { signal, seconds: config.DRAIN_SECONDS });
  await new Promise((resolve) => setTimeout(resolve, config.DRAIN_SECONDS * 1000));
  const inTime = await within(config.SHUTDOWN_SECONDS * 1000, server.shutdown().then(() => true));
  if (inTime) log.write("info", "stopped");
  else log.write("warn", "stopped before all requests were finished");
  await log.flush(FLUSH_MILLISECONDS);
  return inTime ? 0 : 1;
}

function nextStopSignal(): Promise<[Deno.Signal, number]> {
  return new Promise((resolve) => {
    for (const entry of STOP_SIGNALS) Deno.addSignalListener(entry[0], () => resolve(entry));
  });
}

async function within<T>(milliseconds: number, promise: Promise<T>): Promise<T | undefined> {
  const { promise: late, resolve } = Promise.withResolvers<undefined>();
  const timer = setTimeout(() => resolve(undefined), milliseconds);
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// ---- Probe and command line ----

const PROBE_MILLISECONDS = 2000;

async function probe({ HOST, PORT }: Config): Promise<number> {
  const loopback: Record<string, string> = { "0.0.0.0": "127.0.0.1", "::": "::1" };
  const hostname = loopback[HOST] ?? HOST;
  try {
    const answer = await within(PROBE_MILLISECONDS, ask(hostname, PORT));
    if (answer === undefined) throw "no answer within 2 seconds";
    const [, status, firstLine] = /^HTTP\/1\.\d (\d{3}) .*?\r\n\r\n([^\r\n]*)/s.exec(answer) ?? [];
    if (status === undefined) throw "what answers does not speak HTTP";
    console.log(status, firstLine);
    return status === "200" ? 0 : 1;
  } catch (error) {
    console.log(`${hostname} port ${PORT}: ${error}`);
    return 1;
  }
}

/** By a bare socket: `fetch` would go through the proxy that `HTTP_PROXY` names, and cost more. */
async function ask(hostname: string, port: number): Promise<string> {
  const connection = await Deno.connect({ hostname, port });
  await connection.write(new TextEncoder().encode("GET /health HTTP/1.0\r\n\r\n"));
  return await new Response(connection.readable).text();
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
  if (args.length === 0) return await configured(serve);
  switch (args.join(" ")) {
    case "--health":
      return await configured(probe);
    case "--version":
      console.log(SERVICE.name, SERVICE.version);
      return 0;
    case "--help":
      console.log(help());
      return 0;
    default:
      console.error(USAGE);
      return 2;
  }
}

async function configured(run: (config: Config) => Promise<number>): Promise<number> {
  let config: Config;
  try {
    config = parseConfig(Deno.env.get, Deno.stdout.isTerminal());
  } catch (error) {
    console.error((error as Error).message);
    return 2;
  }
  return await run(config);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
