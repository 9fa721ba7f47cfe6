/**
 * The suite: what is pure first, then the black box, which drives every form of the service that is
 * there: the source, the executable that `EXECUTABLE` names, the image that `IMAGE` names.
 */
import { assert, assertEquals, assertMatch, assertNotMatch, assertThrows } from "@std/assert";
import { type Clock, type Config, handle, Logger, parseConfig, type Service } from "./main.ts";
import project from "./deno.json" with { type: "json" };

// ---- What is pure ----

const DEFAULTS: Config = {
  HOST: "0.0.0.0",
  PORT: 5000,
  LOG_LEVEL: "info",
  LOG_FORMAT: "json",
  TRUST_PROXY: 0,
  DRAIN_SECONDS: 0,
  SHUTDOWN_SECONDS: 8,
};
const NOON = "2026-01-07T12:00:00.000Z";

function parse(env: Record<string, string>, isTerminal = false): Config {
  return parseConfig((name) => env[name], isTerminal);
}

/** A service at noon that has run for so many milliseconds, and the log lines it writes. */
function serviceFor(config: Partial<Config> = {}, uptime = 0) {
  const clock: Clock = { timestamp: () => NOON, monotonic: () => uptime };
  const lines: string[] = [];
  const log = new Logger({ ...DEFAULTS, ...config }, clock, (bytes) => {
    lines.push(...new TextDecoder().decode(bytes).trimEnd().split("\n"));
    return Promise.resolve(bytes.length);
  });
  const service: Service = {
    config: { ...DEFAULTS, ...config },
    system: {
      hostname: "my-laptop",
      platform: "Linux",
      platform_version: "6.8.0-45-generic",
      architecture: "x86_64",
      cpu_count: 8,
      deno_version: "2.9.6",
    },
    clock,
    log,
    status: "healthy",
  };
  return { service, log, lines };
}

function get(path: string, headers: HeadersInit = {}): Request {
  return new Request(`http://localhost${path}`, { headers });
}

function from(hostname: string) {
  return { remoteAddr: { hostname } };
}

Deno.test("parseConfig() gives every default when nothing is set or all is empty", () => {
  assertEquals(parse({}), DEFAULTS);
  assertEquals(parse(Object.fromEntries(Object.keys(DEFAULTS).map((key) => [key, ""]))), DEFAULTS);
});

Deno.test("parseConfig() logs text by default when people read the log", () => {
  assertEquals(parse({}, true).LOG_FORMAT, "text");
  assertEquals(parse({ LOG_FORMAT: "json" }, true).LOG_FORMAT, "json");
});

const VALUES: [keyof Config, string[], string[]][] = [
  ["HOST", ["0.0.0.0", "::", "127.0.0.1", "::1", "localhost"], ["example.com", "10.0.0.1", " ::"]],
  ["PORT", ["0", "1", "8080", "65535"], ["65536", "-1", "5000.5", "http", "0x1F", " 80", "1e3"]],
  ["LOG_LEVEL", ["debug", "info", "warn", "error"], ["INFO", "trace", "0"]],
  ["LOG_FORMAT", ["json", "text"], ["xml", "JSON"]],
  ["TRUST_PROXY", ["0", "1", "16"], ["17", "-1", "true"]],
  ["DRAIN_SECONDS", ["0", "300"], ["301", "5s", "0.5"]],
  ["SHUTDOWN_SECONDS", ["0", "300"], ["301", "∞"]],
];

for (const [name, good, bad] of VALUES) {
  Deno.test(`parseConfig() takes every allowed ${name} and names what is allowed for others`, () => {
    for (const value of good) assertEquals(String(parse({ [name]: value })[name]), value);
    for (const value of bad) {
      const error = assertThrows(() => parse({ [name]: value }), RangeError);
      assertEquals(error.message.split("\n").length, 1);
      assert(error.message.startsWith(`${name}=${JSON.stringify(value)}: allowed is `));
      for (const end of [good.at(0), good.at(-1)]) assert(error.message.includes(String(end)));
    }
  });
}

Deno.test("parseConfig() names every bad variable, one line each, whatever is in the value", () => {
  const { message } = assertThrows(
    () => parse({ PORT: "a\nb\x9b", LOG_LEVEL: "loud", TRUST_PROXY: "1" }),
    RangeError,
  );
  assertMatch(message, /^PORT="a\\nb\\u009b": .*\nLOG_LEVEL="loud": .*$/);
});

Deno.test("handle() answers GET / with exactly the agreed keys in their order", async () => {
  const { service } = serviceFor({}, 3_600_999);
  const response = handle(service, get("/", { "user-agent": "curl/8.5.0" }), from("127.0.0.1"));
  assertEquals(response.status, 200);
  assertEquals(
    await response.text(),
    `{"service":{"name":"devops-info-service","version":"${project.version}",` +
      `"description":"DevOps course info service","framework":"Deno.serve"},` +
      `"system":{"hostname":"my-laptop","platform":"Linux","platform_version":"6.8.0-45-generic",` +
      `"architecture":"x86_64","cpu_count":8,"deno_version":"2.9.6"},` +
      `"runtime":{"uptime_seconds":3600,"uptime_human":"1 hour, 0 minutes",` +
      `"current_time":"2026-01-07T12:00:00.000Z","timezone":"UTC"},` +
      `"request":{"client_ip":"127.0.0.1","user_agent":"curl/8.5.0","method":"GET","path":"/"},` +
      `"endpoints":[{"path":"/","method":"GET","description":"Service information"},` +
      `{"path":"/health","method":"GET","description":"Health check"}]}\n`,
  );
});

Deno.test("handle() puts the request where it belongs, whatever the machine is called", async () => {
  for (const hostname of ["", '"', '"request":null', "request", "\\"]) {
    const { service } = serviceFor();
    const named = { ...service, system: { ...service.system, hostname } };
    const { system, request } = await handle(named, get("/"), from("::1")).json();
    assertEquals([system.hostname, request.path], [hostname, "/"]);
  }
});

Deno.test("handle() answers GET /health with the state, the time and the uptime", async () => {
  const { service } = serviceFor({}, 3_600_999);
  const body = (status: string) =>
    `{"status":"${status}","timestamp":"2026-01-07T12:00:00.000Z","uptime_seconds":3600}\n`;
  const healthy = handle(service, get("/health"), from("::1"));
  assertEquals([healthy.status, await healthy.text()], [200, body("healthy")]);
  service.status = "draining";
  const draining = handle(service, get("/health"), from("::1"));
  assertEquals([draining.status, await draining.text()], [503, body("draining")]);
});

Deno.test("handle() closes connections while draining, whatever it answers", () => {
  for (const [status, connection] of [["healthy", null], ["draining", "close"]] as const) {
    const { service } = serviceFor();
    service.status = status;
    const answers = [
      handle(service, get("/"), from("::1")),
      handle(service, get("/health"), from("::1")),
      handle(service, get("/nowhere"), from("::1")),
      handle(service, new Request("http://[::1]/", { headers: { host: "a b" } }), from("::1")),
      handle(service, new Request("http://x/", { method: "POST" }), from("::1")),
      handle(service, new Request("http://x/", { method: "OPTIONS" }), from("::1")),
      handle(
        {
          ...service,
          get system(): never {
            throw new Error();
          },
        },
        get("/"),
        from("::1"),
      ),
    ];
    const healthCode = status === "healthy" ? 200 : 503;
    assertEquals(answers.map(({ status }) => status), [200, healthCode, 404, 400, 405, 204, 500]);
    for (const { headers } of answers) assertEquals(headers.get("connection"), connection);
  }
});

for (
  const [minutes, expected] of [
    [0, "0 hours, 0 minutes"],
    [1, "0 hours, 1 minute"],
    [2, "0 hours, 2 minutes"],
    [61, "1 hour, 1 minute"],
    [119, "1 hour, 59 minutes"],
    [49 * 60, "49 hours, 0 minutes"],
  ] as const
) {
  Deno.test(`handle() says an uptime of ${minutes} minutes as ${expected}`, async () => {
    for (const milliseconds of [0, 59_999]) {
      const { service } = serviceFor({}, minutes * 60_000 + milliseconds);
      const { runtime } = await handle(service, get("/"), from("::1")).json();
      assertEquals(runtime.uptime_human, expected);
    }
  });
}

for (
  const [proxies, forwarded, expected] of [
    [0, "203.0.113.7", "192.0.2.1"],
    [1, "", "192.0.2.1"],
    [1, "203.0.113.7", "203.0.113.7"],
    [1, "198.51.100.9, 203.0.113.7", "203.0.113.7"],
    [2, "198.51.100.9, 203.0.113.7", "198.51.100.9"],
    [2, "spoofed, 198.51.100.9 ,203.0.113.7", "198.51.100.9"],
    [2, "203.0.113.7", "192.0.2.1"],
    [1, "2001:db8::7", "2001:db8::7"],
    [1, "::ffff:203.0.113.7", "203.0.113.7"],
    [1, "198.51.100.9, garbage", "192.0.2.1"],
    [1, "203.0.113.256", "192.0.2.1"],
    [1, "203.0.113", "192.0.2.1"],
    [1, "203.0.113.7.8", "192.0.2.1"],
    [1, "203..113.7", "192.0.2.1"],
    [1, "203.0.113.007", "192.0.2.1"],
    [1, "2001:db8::7::1", "192.0.2.1"],
    [1, "::1]/[", "192.0.2.1"],
    [1, "unknown, ", "192.0.2.1"],
  ] as const
) {
  Deno.test(`handle() sees ${expected} through ${proxies} proxies and "${forwarded}"`, async () => {
    const { service } = serviceFor({ TRUST_PROXY: proxies });
    const request = get("/", { "x-forwarded-for": forwarded });
    assertEquals((await handle(service, request, from("192.0.2.1")).json()).request.client_ip, expected);
  });
}

Deno.test("handle() shows an IPv4 peer of a dual-stack socket as IPv4", async () => {
  const { service } = serviceFor();
  const seen = async (peer: string) => (await handle(service, get("/"), from(peer)).json()).request.client_ip;
  assertEquals(await seen("::ffff:192.0.2.1"), "192.0.2.1");
  assertEquals(await seen("2001:db8::1"), "2001:db8::1");
});

Deno.test("handle() answers 500 with nothing of the cause, which goes to the log", async () => {
  const { service, log, lines } = serviceFor();
  const broken = {
    ...service,
    get system(): never {
      throw new Error("the cause");
    },
  };
  const response = handle(broken, get("/"), from("::1"));
  assertEquals(response.status, 500);
  assertEquals(
    await response.text(),
    `{"error":"Internal Server Error","message":"An unexpected error occurred"}\n`,
  );
  assertEquals(response.headers.get("cache-control"), "no-store");
  await log.flush(1000);
  const { level, status, error } = JSON.parse(lines[0]!);
  assertEquals([level, status], ["error", 500]);
  assertMatch(error, /the cause/);
});

Deno.test("handle() logs probes at debug, the rest at info, 5xx at error", async () => {
  const { service, log, lines } = serviceFor({ LOG_LEVEL: "debug" });
  handle(service, get("/"), from("::1"));
  handle(service, get("/health"), from("::1"));
  handle(service, get("/nowhere"), from("::1"));
  handle(service, new Request("http://x/health", { method: "POST" }), from("::1"));
  service.status = "draining";
  handle(service, get("/health"), from("::1"));
  await log.flush(1000);
  assertEquals(lines.map((line) => JSON.parse(line)).map(({ level, status }) => [level, status]), [
    ["info", 200],
    ["debug", 200],
    ["info", 404],
    ["info", 405],
    ["error", 503],
  ]);
});

Deno.test("Logger writes the agreed keys in their order, in both forms", async () => {
  for (
    const [LOG_FORMAT, expected] of [
      [
        "json",
        `{"time":"2026-01-07T12:00:00.000Z","level":"warn","msg":"a message","n":1,"s":"a \\"b\\""}`,
      ],
      ["text", `2026-01-07T12:00:00.000Z WARN  a message n=1 s="a \\"b\\""`],
    ] as const
  ) {
    const { log, lines } = serviceFor({ LOG_FORMAT });
    log.write("warn", "a message", { n: 1, s: 'a "b"' });
    log.write("debug", "not for this level");
    await log.flush(1000);
    assertEquals(lines, [expected]);
  }
});

Deno.test("Logger lets nothing break a line or steer a terminal, in both forms", async () => {
  const hostile = "a\r\nb\x1b[2J\x7f\x85\x9b\u2028\u2029\u202e\u2066\u200f";
  for (const LOG_FORMAT of ["json", "text"] as const) {
    const { log, lines } = serviceFor({ LOG_FORMAT });
    log.write("info", "request", { user_agent: hostile });
    await log.flush(1000);
    assertEquals(lines.length, 1);
    assertMatch(lines[0]!, /^[\x20-\x7e]+$/);
    if (LOG_FORMAT === "json") assertEquals(JSON.parse(lines[0]!).user_agent, hostile);
  }
});

Deno.test("Logger drops and counts lines while nobody reads, and says so when somebody does", async () => {
  const reader = Promise.withResolvers<void>();
  let written = "";
  const log = new Logger(DEFAULTS, serviceFor().service.clock, async (bytes) => {
    await reader.promise;
    const some = bytes.subarray(0, 1000); // a pipe may take less than it is offered
    written += new TextDecoder().decode(some);
    return some.length;
  });
  const total = 10_000;
  for (let n = 0; n < total; n++) log.write("info", "x".repeat(500), { n });
  await log.flush(1); // gives up on a reader that does not read
  assertEquals(written, "");
  reader.resolve();
  await log.flush(20_000);
  const lines = written.trimEnd().split("\n").map((line) => JSON.parse(line));
  const { msg, level, dropped } = lines.pop();
  assertEquals([msg, level], ["log lines dropped", "warn"]);
  assert(dropped > 0 && lines.length > 1000);
  assertEquals(lines.length + dropped, total);
  assertEquals(lines.map(({ n }) => n), Array.from(lines, (_, n) => n));
});

Deno.test("Logger outlives a broken reader and counts what it lost", async () => {
  let broken = true;
  let written = "";
  const log = new Logger(DEFAULTS, serviceFor().service.clock, (bytes) => {
    if (broken) return Promise.reject(new Deno.errors.BrokenPipe());
    written += new TextDecoder().decode(bytes);
    return Promise.resolve(bytes.length);
  });
  for (const msg of ["first", "second"]) {
    log.write("info", msg);
    await log.flush(1000);
  }
  broken = false;
  log.write("info", "third");
  await log.flush(1000);
  const lines = written.trimEnd().split("\n").map((line) => JSON.parse(line));
  assertEquals(lines.map(({ msg, dropped }) => [msg, dropped]), [
    ["third", undefined],
    ["log lines dropped", 2],
  ]);
});

Deno.test("Logger outlives a reader that goes away while the queue is full", async () => {
  const total = 10_000;
  let written = "";
  let isFirst = true;
  const log = new Logger(DEFAULTS, serviceFor().service.clock, (bytes) => {
    if (isFirst) {
      isFirst = false;
      for (let n = 1; n < total; n++) log.write("info", "x".repeat(500));
      return Promise.reject(new Deno.errors.BrokenPipe());
    }
    written += new TextDecoder().decode(bytes);
    return Promise.resolve(bytes.length);
  });
  log.write("info", "first");
  await log.flush(20_000);
  log.write("info", "again");
  await log.flush(20_000);
  const lines = written.trimEnd().split("\n").map((line) => JSON.parse(line));
  assertEquals(lines.map(({ msg, dropped }) => [msg, dropped]), [
    ["again", undefined],
    ["log lines dropped", total],
  ]);
});

Deno.test("Logger counts a line once, whatever fails when", async () => {
  const failures = [
    (bytes: Uint8Array) => bytes.length, // the first line is written whole
    (bytes: Uint8Array) => bytes.indexOf(10) + 5, // then a line and a bit of another
    () => Promise.reject(new Deno.errors.WouldBlock()), // which loses what is left
    () => Promise.reject(new Deno.errors.WouldBlock()), // and the next, with the notice of that
  ];
  let written = "";
  const log = new Logger(DEFAULTS, serviceFor().service.clock, async (bytes) => {
    const length = await (failures.shift() ?? ((bytes) => bytes.length))(bytes);
    written += new TextDecoder().decode(bytes.subarray(0, length));
    return length;
  });
  for (const names of [["a"], ["b", "c", "d"], ["e"], ["f"]]) {
    for (const name of names) log.write("info", name);
    await log.flush(1000);
  }
  const lines = written.trimEnd().split("\n");
  assertEquals(lines.splice(2, 1), ['{"ti'], "the line that was torn, on a line of its own");
  assertEquals(lines.map((line) => JSON.parse(line)).map(({ msg, dropped }) => [msg, dropped]), [
    ["a", undefined],
    ["b", undefined],
    ["f", undefined],
    ["log lines dropped", 3],
  ]);
});

// ---- The black box ----

interface Form {
  readonly name: "source" | "executable" | "image";
  /** Program and arguments that run the service with these variables and limits. */
  command(env: Record<string, string>, container: string, limits: Limits): string[];
}

interface Limits {
  readonly descriptors?: number;
  /** Of a container; a process of its own has none. */
  readonly memory?: string;
}

function processForm(name: Form["name"], ...command: string[]): Form {
  return {
    name,
    command: (_env, _container, { descriptors }) =>
      descriptors ? ["sh", "-c", `ulimit -n ${descriptors} && exec "$0" "$@"`, ...command] : command,
  };
}

const SOURCE_FLAGS = await taskOutput("flags");
const FORMS = [processForm("source", Deno.execPath(), "run", "--quiet", ...SOURCE_FLAGS, "main.ts")];

const executable = Deno.env.get("EXECUTABLE");
if (executable) FORMS.push(processForm("executable", executable));

const HARDENED = "--read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 64".split(" ");

function imageForm(image: string): Form {
  return {
    name: "image",
    command: (env, container, { descriptors, memory = "128m" }) => [
      ...["docker", "run", "--rm", "--name", container, "--network", "host", ...HARDENED],
      ...(descriptors ? ["--ulimit", `nofile=${descriptors}`] : []),
      ...["--memory", memory],
      ...Object.entries(env).flatMap(([name, value]) => ["--env", `${name}=${value}`]),
      image,
    ],
  };
}

const image = Deno.env.get("IMAGE");
if (image) FORMS.push(imageForm(image));

async function taskOutput(task: string): Promise<string[]> {
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["task", "--quiet", task],
    stderr: "null",
  }).output();
  return new TextDecoder().decode(stdout).trim().split(" ");
}

/** One run of the service. Leaving its scope ends it. */
class Run implements AsyncDisposable {
  stdout = "";
  stderr = "";
  readonly #form: Form;
  readonly #container = `devops-info-service-${crypto.randomUUID()}`;
  readonly #child: Deno.ChildProcess;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #ended: Promise<Deno.CommandStatus>;
  #hasEnded = false;
  #arrived = Promise.withResolvers<void>();
  #resumed = Promise.withResolvers<void>();

  constructor(
    form: Form,
    env: Record<string, string> = {},
    args: string[] = [],
    limits: Limits = {},
  ) {
    this.#form = form;
    const [program, ...rest] = form.command(env, this.#container, limits);
    const inherited = Object.entries(Deno.env.toObject()).filter(([name]) => !(name in DEFAULTS));
    this.#child = new Deno.Command(program!, {
      args: [...rest, ...args],
      clearEnv: true,
      env: { ...Object.fromEntries(inherited), ...env },
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    this.#reader = this.#child.stdout.getReader();
    this.#resumed.resolve();
    this.#ended = Promise.all([
      this.#child.status,
      this.#readOutput(),
      new Response(this.#child.stderr).text().then((text) => this.stderr = text),
    ]).then(([status]) => {
      this.#hasEnded = true;
      this.#arrived.resolve();
      return status;
    });
  }

  async #readOutput() {
    const decoder = new TextDecoder();
    for (let chunk; !(chunk = await this.#reader.read()).done;) {
      this.stdout += decoder.decode(chunk.value, { stream: true });
      this.#arrived.resolve();
      this.#arrived = Promise.withResolvers();
      await this.#resumed.promise;
    }
  }

  /** Stops reading standard output. */
  pause() {
    this.#resumed = Promise.withResolvers();
  }

  /** Goes on reading standard output. */
  resume() {
    this.#resumed.resolve();
  }

  /** Closes standard output at this end. */
  async abandon() {
    await this.#reader.cancel();
  }

  /** The log lines written so far. */
  get lines(): Record<string, unknown>[] {
    return this.stdout.split("\n").slice(0, -1).map((line) => JSON.parse(line));
  }

  /** Waits for standard output to match. */
  async output(pattern: RegExp): Promise<RegExpExecArray> {
    while (true) {
      const match = pattern.exec(this.stdout);
      if (match) return match;
      if (this.#hasEnded) throw new Error(`no ${pattern} in: ${this.stdout}${this.stderr}`);
      await within(this.#arrived.promise, `${pattern} in the log`);
    }
  }

  /** Sends a signal to the service, inside its container where it has one. */
  kill(signal: Deno.Signal) {
    this.#child.kill(signal); // docker hands it on
  }

  /** The number of the service's process, seen from outside its container. */
  async pid(): Promise<number> {
    if (this.#form.name !== "image") return this.#child.pid;
    return Number(await docker("inspect", "--format", "{{.State.Pid}}", this.#container));
  }

  /** Waits for the end and gives the exit code. */
  async code(): Promise<number> {
    const { code, signal } = await within(this.#child.status, "the end of the service");
    assertEquals(signal, null, "ended by a signal instead of an exit code");
    this.resume();
    await this.#ended;
    return code;
  }

  /** Ends the service as nothing that it could notice does. */
  async destroy() {
    if (this.#form.name === "image") await docker("rm", "--force", this.#container);
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // it ended by itself meanwhile
    }
    this.resume();
    await this.#ended;
  }

  async [Symbol.asyncDispose]() {
    if (this.#hasEnded) return;
    // a docker client that is signalled three times leaves its container behind
    if (this.#form.name === "image") return await this.destroy();
    try {
      // two signals end it at once, and yet so that the coverage it saw is written
      this.kill("SIGTERM");
      this.kill("SIGINT");
    } catch {
      // it ended by itself meanwhile
    }
    this.resume();
    const timer = setTimeout(() => this.destroy(), 5000);
    await this.#ended;
    clearTimeout(timer);
  }
}

/** What declares a test of one form. */
function testOf(form: Form) {
  return (name: string, fn: () => Promise<void>, ignore = false) =>
    Deno.test({ name: `${form.name}: ${name}`, fn, ignore });
}

/** A service that listens on a free port. */
async function start(form: Form, env: Record<string, string> = {}, limits: Limits = {}) {
  const run = new Run(form, { HOST: "127.0.0.1", PORT: "0", ...env }, [], limits);
  try {
    const [, port] = await run.output(/listening.*?port"?[:=](\d+)/);
    return Object.assign(run, { port: Number(port) });
  } catch (error) {
    await run[Symbol.asyncDispose]();
    throw error;
  }
}

async function docker(...args: string[]): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command("docker", { args }).output();
  const [output, error] = [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes).trim());
  if (!success) throw new Error(`docker ${args.join(" ")}: ${error}`);
  return output!;
}

/** A bound on waiting; generous, since passing it means a hang. */
async function within<T>(promise: Promise<T>, what: string | (() => string)): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>();
  const give = () => reject(new Error(`waited for ${typeof what === "string" ? what : what()}`));
  const timer = setTimeout(give, 30_000);
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Sends bytes, one for each character, and gives what comes back until the other end closes. */
async function exchange(port: number, text: string, hostname = "127.0.0.1"): Promise<string> {
  using connection = await Deno.connect({ hostname, port });
  let answer = "";
  const receive = async () => {
    const buffer = new Uint8Array(65536);
    for (let n; (n = await connection.read(buffer)) !== null;) {
      answer += String.fromCharCode(...buffer.subarray(0, n));
    }
  };
  const both = Promise.all([send(connection, text), receive()]);
  await within(both, () => `the end of ${JSON.stringify(text)}, got ${JSON.stringify(answer)}`);
  return answer;
}

async function send(connection: Deno.Conn, text: string) {
  let bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
  while (bytes.length > 0) bytes = bytes.subarray(await connection.write(bytes));
}

async function receiveSome(connection: Deno.Conn): Promise<string> {
  const buffer = new Uint8Array(65536);
  const length = await within(connection.read(buffer), "an answer");
  return String.fromCharCode(...buffer.subarray(0, length ?? 0));
}

/** Waits for a condition that nothing announces. */
async function until(condition: () => boolean | Promise<boolean>, what: string) {
  for (const deadline = Date.now() + 30_000; !await condition();) {
    assert(Date.now() < deadline, `waited for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

interface Answer {
  status: number;
  headers: Headers;
  body: string;
}

function parseAnswer(answer: string): Answer {
  const [head = "", ...body] = answer.split("\r\n\r\n");
  const [statusLine = "", ...fields] = head.split("\r\n");
  const status = /^HTTP\/1\.[01] (\d{3}) /.exec(statusLine)?.[1];
  assert(status, `no HTTP answer: ${JSON.stringify(answer)}`);
  const headers = new Headers(fields.map((field) => {
    const [name = "", ...value] = field.split(":");
    return [name, value.join(":").trim()];
  }));
  return { status: Number(status), headers, body: body.join("\r\n\r\n") };
}

/** One request on a connection of its own. */
async function ask(
  port: number,
  methodAndTarget: string,
  { host = "127.0.0.1", fields = ["Host: localhost"] } = {},
): Promise<Answer> {
  const head = [`${methodAndTarget} HTTP/1.1`, "Connection: close", ...fields];
  return parseAnswer(await exchange(port, head.join("\r\n") + "\r\n\r\n", host));
}

/** What is not of HTTP/1.0: no Host, and the server closes. */
async function health(port: number, host = "127.0.0.1"): Promise<Answer> {
  return parseAnswer(await exchange(port, "GET /health HTTP/1.0\r\n\r\n", host));
}

async function refused(port: number): Promise<boolean> {
  try {
    using _connection = await Deno.connect({ hostname: "127.0.0.1", port });
    return false;
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionRefused) return true;
    throw error;
  }
}

/** Keeps the service from stopping: an HTTP/2 client that never sees that the server leaves. */
async function stuckClient(port: number): Promise<Deno.Conn> {
  const stuck = await Deno.connect({ hostname: "127.0.0.1", port });
  await send(stuck, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
  await receiveSome(stuck);
  return stuck;
}

const HAS_IPV6 = (() => {
  try {
    using _listener = Deno.listen({ hostname: "::1", port: 0 });
    return true;
  } catch {
    return false;
  }
})();

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

const INFORMATION_KEYS = {
  service: ["name", "version", "description", "framework"],
  system: [
    ...["hostname", "platform", "platform_version", "architecture", "cpu_count", "deno_version"],
  ],
  runtime: ["uptime_seconds", "uptime_human", "current_time", "timezone"],
  request: ["client_ip", "user_agent", "method", "path"],
};
const RFC_3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

for (const form of FORMS) {
  const test = testOf(form);
  const isImage = form.name === "image"; // whose standard output Docker reads, whoever else does

  test("GET / says what it is and where it runs", async () => {
    await using service = await start(form);
    const { status, headers, body } = await ask(service.port, "GET /?query=changes-nothing", {
      fields: ["Host: localhost", "User-Agent: suite/1.0"],
    });
    assertEquals(status, 200);
    assertEquals(headers.get("content-type"), "application/json; charset=utf-8");
    assert(body.endsWith("}\n"));
    const { endpoints, ...rest } = JSON.parse(body);
    assertEquals(
      Object.entries(rest).map(([key, value]) => [key, Object.keys(value as object)]),
      Object.entries(INFORMATION_KEYS),
    );
    assertEquals(rest.service.version, project.version);
    if (!isImage) assertEquals(rest.system.hostname, Deno.hostname());
    assertEquals(rest.system.platform_version, Deno.osRelease());
    assertEquals(rest.system.architecture, Deno.build.arch);
    assertEquals(rest.system.cpu_count, navigator.hardwareConcurrency);
    const platforms: Record<string, string> = { linux: "Linux", darwin: "Darwin", windows: "Windows" };
    assertEquals(rest.system.platform, platforms[Deno.build.os]);
    assertMatch(rest.system.deno_version, /^\d+\.\d+\.\d+$/);
    assertMatch(rest.runtime.current_time, RFC_3339);
    assert(Math.abs(Date.parse(rest.runtime.current_time) - Date.now()) < 60_000);
    assert(Number.isInteger(rest.runtime.uptime_seconds) && rest.runtime.uptime_seconds < 60);
    assertEquals(rest.request, {
      client_ip: "127.0.0.1",
      user_agent: "suite/1.0",
      method: "GET",
      path: "/",
    });
    assertEquals(endpoints, [
      { path: "/", method: "GET", description: "Service information" },
      { path: "/health", method: "GET", description: "Health check" },
    ]);
  });

  test("GET /health says that it is healthy", async () => {
    await using service = await start(form);
    const { status, body } = await ask(service.port, "GET /health?x");
    assertEquals(status, 200);
    assertMatch(
      body,
      /^{"status":"healthy","timestamp":"\d{4}-\d\d-\d\dT[\d:.]+Z","uptime_seconds":\d+}\n$/,
    );
  });

  test("uptime grows by the second, and both routes agree on it", async () => {
    const begun = Date.now();
    await using service = await start(form);
    const uptime = async () => JSON.parse((await health(service.port)).body).uptime_seconds;
    await until(async () => await uptime() >= 2, "an uptime of 2 s");
    assert(Date.now() - begun > 1000);
    const { runtime } = JSON.parse((await ask(service.port, "GET /")).body);
    assert(runtime.uptime_seconds >= 2 && runtime.uptime_seconds < 60);
  });

  test("every method and path gets its status, Allow, JSON and common headers", async () => {
    await using service = await start(form);
    for (
      const [request, expected] of [
        ["GET /", 200],
        ["HEAD /", 200],
        ["GET /?a=/health", 200],
        ["GET /health?", 200],
        ["HEAD /health", 200],
        ["OPTIONS /", 204],
        ["OPTIONS /health", 204],
        ["OPTIONS *", 204],
        ["POST /", 405],
        ["PUT /health", 405],
        ["PATCH /health", 405],
        ["DELETE /", 405],
        ["TRACE /", 405],
        ["PROPFIND /", 405],
        ["get /", 405],
        ["GET /health/", 404],
        ["GET /Health", 404],
        ["GET //health", 404],
        ["GET /%2e%2e/health", 404],
        ["GET /x/../health", 404],
        ["GET /healthz", 404],
        ["HEAD /nowhere", 404],
        ["POST /nowhere", 404],
        ["OPTIONS /nowhere", 404],
      ] as const
    ) {
      const { status, headers, body } = await ask(service.port, request);
      assertEquals(status, expected, request);
      assertEquals(headers.get("cache-control"), "no-store", request);
      assertEquals(headers.get("x-content-type-options"), "nosniff", request);
      const allow = [204, 405].includes(status) ? "GET, HEAD, OPTIONS" : null;
      assertEquals(headers.get("allow"), allow, request);
      if (status === 204 || request.startsWith("HEAD")) assertEquals(body, "", request);
      else {
        assertEquals(headers.get("content-type"), "application/json; charset=utf-8", request);
        assertEquals(headers.get("content-length"), String(body.length), request);
        assert(body.endsWith("}\n"), request);
      }
      if (status === 404 && body !== "") {
        assertEquals(body, `{"error":"Not Found","message":"Endpoint does not exist"}\n`);
      }
      if (status === 405) {
        const { error, message, ...rest } = JSON.parse(body);
        assertEquals([error, typeof message, rest], ["Method Not Allowed", "string", {}], request);
      }
    }
  });

  test("HEAD has the content-length of what GET would send", async () => {
    await using service = await start(form);
    for (const path of ["/", "/health", "/nowhere"]) {
      const [head, got] = [
        await ask(service.port, `HEAD ${path}`),
        await ask(service.port, `GET ${path}`),
      ];
      assertEquals(head.headers.get("content-length"), String(got.body.length), path);
    }
  });

  test("a Host that is no host gets 400 on every route, a valid one or none does not", async () => {
    await using service = await start(form);
    for (
      const host of [
        "x/health?",
        "x?",
        "x#",
        "user@x",
        "user:password@x",
        "a b",
        "x:80:80",
        "x:port",
        "[::1",
        "::1",
        "http://x",
        "[zz]",
        "[:::::]",
        "[]",
        "a%zz",
        ":80",
        "",
        "\xe9",
        "\\x",
      ]
    ) {
      for (const target of ["/", "/health", "/nowhere"]) {
        const { status, body } = await ask(service.port, `GET ${target}`, {
          fields: [`Host: ${host}`],
        });
        assertEquals([status, body !== "" && JSON.parse(body).error], [400, "Bad Request"], host);
      }
    }
    for (const host of ["x", "x:80", "x:", "[::1]", "[::1]:5000", "xn--caf-dma.example", "a_b"]) {
      assertEquals((await ask(service.port, "GET /", { fields: [`Host: ${host}`] })).status, 200);
    }
    // the runtime does not say which version a request is of, and HTTP/1.0 needs no Host
    assertEquals((await health(service.port)).status, 200);
    assertEquals((await ask(service.port, "GET /health", { fields: [] })).status, 200);
  });

  test("no User-Agent shows as unknown", async () => {
    await using service = await start(form);
    const { body } = await ask(service.port, "GET /");
    assertEquals(JSON.parse(body).request.user_agent, "unknown");
  });

  test("TRUST_PROXY believes the address that the outermost trusted proxy saw", async () => {
    const fields = ["Host: x", "X-Forwarded-For: 198.51.100.9", "X-Forwarded-For: 203.0.113.7"];
    for (
      const [TRUST_PROXY, expected] of [
        ["0", "127.0.0.1"],
        ["1", "203.0.113.7"],
        ["2", "198.51.100.9"],
        ["3", "127.0.0.1"],
      ] as const
    ) {
      await using service = await start(form, { TRUST_PROXY });
      const { body } = await ask(service.port, "GET /", { fields });
      assertEquals(JSON.parse(body).request.client_ip, expected);
      await service.output(new RegExp(`"msg":"request".*"client_ip":"${expected}"`));
    }
  });

  test("HOST takes every allowed address; dual stack shows IPv4 as IPv4", async () => {
    for (
      const [HOST, ...hostnames] of [
        ["0.0.0.0", "127.0.0.1"],
        ["127.0.0.1", "127.0.0.1"],
        ...(HAS_IPV6 ? [["::", "127.0.0.1", "::1"], ["::1", "::1"]] : []),
      ]
    ) {
      await using service = await start(form, { HOST: HOST! });
      for (const host of hostnames) {
        const { body } = await ask(service.port, "GET /", { host });
        assertEquals(JSON.parse(body).request.client_ip, host);
      }
    }
    await using service = await start(form, { HOST: "localhost" });
    assertEquals((await health(service.port, "localhost")).status, 200);
  });

  test("bad variables: a line each on standard error, exit 2, nothing listening", async () => {
    const port = freePort();
    const env = { PORT: String(port), LOG_LEVEL: "loud", DRAIN_SECONDS: "-1" };
    for (const args of [[], ["--health"]]) {
      await using run = new Run(form, env, args);
      assertEquals(await run.code(), 2);
      assertEquals(run.stdout, "");
      assertEquals(run.stderr.trimEnd().split("\n"), [
        `LOG_LEVEL="loud": allowed is debug, info, warn, error`,
        `DRAIN_SECONDS="-1": allowed is 0–300`,
      ]);
    }
    assert(await refused(port));
  });

  test("empty variables count as unset", async () => {
    await using service = await start(form, { LOG_LEVEL: "", LOG_FORMAT: "", DRAIN_SECONDS: "" });
    assertEquals(service.lines[0]!.level, "info");
  });

  test("a port in use: one line, exit 1", async () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const PORT = String(listener.addr.port);
    await using run = new Run(form, { HOST: "127.0.0.1", PORT });
    assertEquals(await run.code(), 1);
    assertEquals(run.stdout, "");
    assertMatch(run.stderr, new RegExp(`^cannot listen on 127.0.0.1 port ${PORT}: .*in use.*\n$`));
  });

  const reserved = Deno.build.os === "linux" &&
    Number(Deno.readTextFileSync("/proc/sys/net/ipv4/ip_unprivileged_port_start")) > 80;
  test("a port that the user may not bind: one line, exit 1", async () => {
    await using run = new Run(form, { HOST: "127.0.0.1", PORT: "80" });
    assertEquals(await run.code(), 1);
    assertMatch(run.stderr, /^cannot listen on 127.0.0.1 port 80: .*denied.*\n$/);
  }, !reserved || (!isImage && Deno.uid() === 0));

  test("--health exits 0 on 200 and 1 on 503, and prints the answer on one line", async () => {
    for (const HOST of ["0.0.0.0", "127.0.0.1", ...(HAS_IPV6 ? ["::", "::1"] : [])]) {
      await using service = await start(form, { HOST, DRAIN_SECONDS: "300" });
      // a proxy that the environment names is not for a service on the same machine
      const env = { HOST, PORT: String(service.port), HTTP_PROXY: "http://127.0.0.1:1" };
      await using healthy = new Run(form, env, ["--health"]);
      assertEquals(await healthy.code(), 0, healthy.stdout);
      assertMatch(healthy.stdout, /^200 {"status":"healthy".*}\n$/);
      assertEquals(healthy.stderr, "");

      service.kill("SIGTERM");
      await service.output(/draining/);
      await using draining = new Run(form, env, ["--health"]);
      assertEquals(await draining.code(), 1);
      assertMatch(draining.stdout, /^\S+ port \d+: 503 {"status":"draining".*}\n$/);
    }
  });

  test("--health exits 1 with one line when nothing, nobody or something else answers", async () => {
    const closed = freePort();
    using silent = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    using other = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const chat = (async () => {
      using connection = await other.accept();
      await connection.write(new TextEncoder().encode("SSH-2.0\x1b[2J\r\n\r\n\r\nmore\r\n"));
    })();
    for (
      const [HOST, port, line] of [
        ["0.0.0.0", closed, /^127\.0\.0\.1 port \d+: .*refused/],
        ["127.0.0.1", silent.addr.port, /^127\.0\.0\.1 port \d+: no answer within 2 seconds$/m],
        ["127.0.0.1", other.addr.port, /^127\.0\.0\.1 port \d+: no HTTP: SSH-2\.0 \[2J more$/m],
      ] as const
    ) {
      const begun = Date.now();
      await using run = new Run(form, { HOST, PORT: String(port) }, ["--health"]);
      assertEquals(await run.code(), 1);
      assert(Date.now() - begun < 15_000, "two seconds are the limit, and this is not a matter of load");
      assertMatch(run.stdout, line);
      assertEquals([run.stdout.trimEnd().split("\n").length, run.stderr], [1, ""]);
    }
    await chat;
  });

  test("--version and --help say what there is, whatever the environment", async () => {
    await using version = new Run(form, { PORT: "bad" }, ["--version"]);
    assertEquals(await version.code(), 0);
    assertEquals(version.stdout, `devops-info-service ${project.version}\n`);
    await using help = new Run(form, { PORT: "bad" }, ["--help"]);
    assertEquals(await help.code(), 0);
    for (const word of [...Object.keys(DEFAULTS), "--health", "Usage", "Exit codes", "143"]) {
      assert(help.stdout.includes(word), word);
    }
    assertEquals(help.stderr, "");
  });

  test("any other argument: usage on standard error, exit 2", async () => {
    for (const args of [["--nonsense"], ["serve"], ["--help", "--version"], [""]]) {
      await using run = new Run(form, { PORT: "0" }, args);
      assertEquals(await run.code(), 2);
      assertEquals(run.stdout, "");
      assertMatch(run.stderr, /^Usage: devops-info-service .*, not ".*"\n$/);
      assert(run.stderr.includes(JSON.stringify(args.join(" "))));
    }
  });

  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    test(`${signal} ends it in order, idle connections and all`, async () => {
      await using service = await start(form);
      using idle = await Deno.connect({ hostname: "127.0.0.1", port: service.port });
      await idle.write(new TextEncoder().encode("GET /health HTTP/1.1\r\nHost: x\r\n\r\n"));
      assert(await idle.read(new Uint8Array(4096)));
      service.kill(signal);
      assertEquals(await within(idle.read(new Uint8Array(1)), "the idle connection's end"), null);
      assertEquals(await service.code(), 0);
      assert(await refused(service.port));
      assertEquals(service.lines.map(({ msg }) => msg), ["listening", "draining", "stopped"]);
      assertEquals(service.lines[1], {
        ...service.lines[1],
        level: "info",
        signal,
        seconds: 0,
      });
    });
  }

  test("while it drains it serves on and closes connections", async () => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
    using early = await Deno.connect({ hostname: "127.0.0.1", port: service.port });
    await send(early, "GET / HTTP/1.1\r\n");
    assertEquals((await health(service.port)).status, 200);

    service.kill("SIGTERM");
    await service.output(/"msg":"draining"/);
    await send(early, "Host: x\r\n\r\n"); // a request that had begun
    const { status, headers } = parseAnswer(await receiveSome(early));
    assertEquals([status, headers.get("connection")], [200, "close"]);
    assertEquals((await ask(service.port, "GET /")).status, 200); // and a new one
    const probe = await health(service.port);
    assertEquals(probe.status, 503);
    assertMatch(probe.body, /^{"status":"draining",/);
  });

  test("after DRAIN_SECONDS it refuses connections, lets a request finish and exits 0", async () => {
    await using service = await start(form, { DRAIN_SECONDS: "1", SHUTDOWN_SECONDS: "60" });
    using slow = await Deno.connect({ hostname: "127.0.0.1", port: service.port });
    await send(slow, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n12");
    service.kill("SIGTERM");
    const begun = Date.now();
    await until(() => refused(service.port), "the port to close");
    assert(Date.now() - begun > 500);
    await send(slow, "34").catch(() => {}); // 2.7 may have closed it: it had answered 405 already
    assertEquals(await service.code(), 0);
  });

  test("after SHUTDOWN_SECONDS it closes what is left and exits 1", async () => {
    await using service = await start(form, { SHUTDOWN_SECONDS: "2" });
    using _stuck = await stuckClient(service.port);
    service.kill("SIGTERM");
    const begun = Date.now();
    await until(() => refused(service.port), "the port to close");
    assert(!service.stdout.includes("stopped"), "the port closes first");
    assertEquals(await service.code(), 1);
    const seconds = (Date.now() - begun) / 1000;
    assert(seconds > 1 && seconds < 8, `took ${seconds} s`); // 8 is the default
    assertEquals(service.lines.at(-1)!.level, "warn");
  });

  for (const [signal, code] of [["SIGTERM", 143], ["SIGINT", 130]] as const) {
    test(`a second signal, ${signal}, ends it at once with ${code}`, async () => {
      await using draining = await start(form, { DRAIN_SECONDS: "300" });
      draining.kill("SIGTERM");
      await draining.output(/"msg":"draining"/);
      draining.kill(signal);
      assertEquals(await draining.code(), code);

      await using closing = await start(form, { SHUTDOWN_SECONDS: "300" });
      using _stuck = await stuckClient(closing.port);
      closing.kill("SIGINT");
      await until(() => refused(closing.port), "the port to close");
      closing.kill(signal);
      assertEquals(await closing.code(), code);
    });
  }

  test("two signals at the same moment are two signals", async () => {
    for (let n = 0; n < 5; n++) {
      await using service = await start(form, { DRAIN_SECONDS: "300" });
      service.kill("SIGTERM");
      service.kill("SIGINT");
      assertMatch(String(await service.code()), /^(130|143)$/); // whichever came second
    }
  });

  test("logs start, requests, drain and stop with their fields", async () => {
    await using service = await start(form, { LOG_LEVEL: "debug" });
    await ask(service.port, "GET /?secret", { fields: ["Host: x", "User-Agent: a/1"] });
    await health(service.port);
    await ask(service.port, "GET /nowhere");
    service.kill("SIGTERM");
    assertEquals(await service.code(), 0);
    assertEquals(
      service.lines.map(({ time, duration_ms, ...rest }) => {
        assertMatch(String(time), RFC_3339);
        if (rest.msg === "request") assert(typeof duration_ms === "number" && duration_ms >= 0);
        return rest;
      }),
      [
        {
          ...{ level: "info", msg: "listening", address: "127.0.0.1", port: service.port },
          version: project.version,
        },
        {
          ...{ level: "info", msg: "request", method: "GET", path: "/", status: 200 },
          ...{ client_ip: "127.0.0.1", user_agent: "a/1" },
        },
        {
          ...{ level: "debug", msg: "request", method: "GET", path: "/health", status: 200 },
          ...{ client_ip: "127.0.0.1", user_agent: "unknown" },
        },
        {
          ...{ level: "info", msg: "request", method: "GET", path: "/nowhere", status: 404 },
          ...{ client_ip: "127.0.0.1", user_agent: "unknown" },
        },
        { level: "info", msg: "draining", signal: "SIGTERM", seconds: 0 },
        { level: "info", msg: "stopped" },
      ],
    );
    assertEquals(service.stderr, "");
  });

  test("LOG_LEVEL says what is logged; probes are not, by default", async () => {
    await using service = await start(form);
    await health(service.port);
    await ask(service.port, "GET /nowhere");
    service.kill("SIGTERM");
    assertEquals(await service.code(), 0);
    assertEquals(service.lines.map(({ path }) => path).filter(Boolean), ["/nowhere"]);

    const PORT = String(freePort());
    await using quiet = new Run(form, { HOST: "127.0.0.1", PORT, LOG_LEVEL: "warn" });
    await until(async () => !await refused(Number(PORT)), "the port to open");
    await ask(Number(PORT), "GET /nowhere");
    quiet.kill("SIGTERM");
    assertEquals([await quiet.code(), quiet.stdout], [0, ""]);
  });

  test("LOG_FORMAT=text is the same for eyes; nothing a client sends forges a line", async () => {
    for (const LOG_FORMAT of ["text", "json"]) {
      await using service = await start(form, { LOG_FORMAT });
      const forged = `x" level=error\x85{"level":"error"}\x9b2J`;
      await ask(service.port, "GET /a%0ab%1b", { fields: ["Host: x", `User-Agent: ${forged}`] });
      service.kill("SIGTERM");
      assertEquals(await service.code(), 0);
      const lines = service.stdout.trimEnd().split("\n");
      assertEquals(lines.length, 4);
      for (const line of lines) assertMatch(line, /^[\x20-\x7e]+$/);
      if (LOG_FORMAT === "text") {
        assertMatch(
          lines[1]!,
          /^\d{4}-\S+Z INFO {2}request method=GET path="?\/a%0ab%1b"? status=404 duration_ms=[\d.]+ client_ip=127\.0\.0\.1 user_agent="x\\" level=error\\u0085{\\"level\\":\\"error\\"}\\u009b2J"$/,
        );
      } else assertEquals(service.lines[1]!.user_agent, forged);
    }
  });

  test("what is logged before the end is written before the end", async () => {
    await using service = await start(form);
    const count = 300;
    await exchange(
      service.port,
      "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(count - 1) + "GET / HTTP/1.0\r\n\r\n",
    );
    service.kill("SIGTERM");
    assertEquals(await service.code(), 0);
    assertEquals(service.lines.filter(({ msg }) => msg === "request").length, count);
    assertEquals(service.lines.at(-1)!.msg, "stopped");
  });

  test("a reader that stops reading costs lines, which are counted, and no request", async () => {
    await using service = await start(form);
    service.pause();
    const batch = "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    const batches = 15; // several times what the pipe and the queue hold together
    for (let n = 0; n < batches; n++) {
      const answers = await exchange(service.port, `${batch}GET /health HTTP/1.0\r\n\r\n`);
      assertEquals(answers.split(" 404 Not Found\r\n").length - 1, 1000);
      assertMatch(answers, /"status":"healthy"/);
    }
    service.resume();
    await service.output(/log lines dropped/);
    service.kill("SIGTERM");
    assertEquals(await service.code(), 0);
    const seen = service.lines.filter(({ msg }) => msg === "request").length;
    const dropped = service.lines.filter(({ msg }) => msg === "log lines dropped")
      .reduce((sum, line) => sum + Number(line.dropped), 0);
    assert(dropped > 0);
    assertEquals(seen + dropped, batches * 1000);
  }, isImage);

  test(
    "a reader that went away costs lines only; one that hangs does not delay the end",
    async () => {
      for (const leave of ["abandon", "pause"] as const) {
        await using service = await start(form);
        await service[leave]();
        const batch = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
        const answers = await exchange(service.port, `${batch}GET /health HTTP/1.0\r\n\r\n`);
        assertMatch(answers, /"status":"healthy"/);
        service.kill("SIGTERM");
        assertEquals(await service.code(), 0);
      }
    },
    isImage,
  );

  test("on a terminal it logs text", async () => {
    const [program, ...args] = form.command({}, "", {});
    const terminal: Form = {
      name: form.name,
      command: () => ["script", "--quiet", "--command", [program, ...args].join(" "), "/dev/null"],
    };
    await using service = await start(terminal);
    assertMatch(service.stdout, /^\S+Z INFO {2}listening address=127.0.0.1 port=\d+ version=/);
  }, isImage || Deno.build.os !== "linux");

  test("it writes nothing to disk", async () => {
    const folder = await Deno.makeTempDir();
    try {
      await using service = await start(form, {
        TMPDIR: folder,
        HOME: folder,
        XDG_CACHE_HOME: folder,
      });
      await ask(service.port, "GET /");
      service.kill("SIGTERM");
      assertEquals(await service.code(), 0);
      assertEquals([...Deno.readDirSync(folder)], []);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  }, form.name !== "executable"); // the image runs read-only; a source run caches its type-stripped source
}

// ---- Holding on ----

/** What a request comes to: a status, after 200 whose answer it is, or that the connection closed. */
async function outcome(port: number, bytes: string, thenClose = false): Promise<string> {
  const connection = await Deno.connect({ hostname: "127.0.0.1", port });
  const sending = send(connection, bytes)
    .then(() => thenClose ? connection.closeWrite() : undefined)
    .catch(() => {}); // the other end may have had enough
  const receive = async () => {
    const buffer = new Uint8Array(65536);
    for (let answer = "";;) {
      answer = answer.replace(/^HTTP\/1\.1 100 Continue\r\n\r\n/, "");
      if (answer.startsWith("\0")) return "HTTP/2";
      const [head = "", ...rest] = answer.split("\r\n\r\n");
      const body = rest.join("\r\n\r\n");
      const length = Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? 0);
      if (rest.length > 0 && body.length >= length) {
        const route = body.includes('"endpoints"') ? " /" : body.includes('"healthy"') ? " /health" : "";
        return parseAnswer(answer).status + route;
      }
      const n = await connection.read(buffer).catch(() => null); // a reset closes as well
      if (n === null) return "closed";
      answer += String.fromCharCode(...buffer.subarray(0, n));
    }
  };
  try {
    return await within(receive(), () => `what comes of ${JSON.stringify(bytes.slice(0, 500))}`);
  } finally {
    connection.close();
    await sending;
  }
}

function http(
  target: string,
  { method = "GET", version = "HTTP/1.1", fields = "", host = "Host: x\r\n", body = "" } = {},
): string {
  return `${method} ${target} ${version}\r\n${host}${fields}\r\n${body}`;
}

const CHUNKED = "Transfer-Encoding: chunked\r\n";
const TOO_MUCH = ["400", "414", "431", "closed"];
const UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n";

/** Raw requests, and what may come of each: one thing, or several where Deno's releases differ. */
const HOSTILE: [string, string, ...string[]][] = [
  ["no version", "GET /\r\n\r\n", "400"],
  ["HTTP/0.9", "GET /health\r\n", "400"],
  ["HTTP/2.0 in a text", http("/", { version: "HTTP/2.0" }), "400"],
  ["unknown version", http("/", { version: "HTTP/9.9" }), "400"],
  ["lower-case version", http("/", { version: "http/1.1" }), "400"],
  ["two spaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", "400"],
  ["tabs", "GET\t/\tHTTP/1.1\r\nHost: x\r\n\r\n", "400"],
  ["leading space", ` ${http("/")}`, "400"],
  ["empty method", http("/", { method: "" }), "400"],
  ["method with a delimiter", http("/", { method: "G(T" }), "400"],
  ["unknown method", http("/", { method: "BREW" }), "405"],
  ["empty line first", `\r\n${http("/health")}`, "200 /health"],
  ["bare LF", "GET /health HTTP/1.1\nHost: x\n\n", "200 /health"], // RFC 9112, 2.2 lets us
  ["bare CR", "GET / HTTP/1.1\rHost: x\r\r", "400"],
  ["TLS", "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".repeat(20), "400"],
  ["NUL in target", http("/\0"), "400"],
  ["NUL in value", http("/", { fields: "X: a\0b\r\n" }), "400"],
  ["NUL in name", http("/", { fields: "X\0: a\r\n" }), "400"],
  ["control character in value", http("/", { fields: "X: a\x01b\r\n" }), "400"],
  ["space before colon", http("/", { fields: "X : a\r\n" }), "400"],
  ["no colon", http("/", { fields: "X\r\n" }), "400"],
  ["folded line", http("/", { fields: "X: a\r\n b\r\n" }), "400"],
  ["field of 100 kB", http("/", { fields: `X: ${"a".repeat(100_000)}\r\n` }), "200 /", ...TOO_MUCH],
  ["field of 1 MB", http("/", { fields: `X: ${"a".repeat(1_000_000)}\r\n` }), ...TOO_MUCH],
  ["200 fields", http("/", { fields: "X: a\r\n".repeat(200) }), ...TOO_MUCH],
  ["5,000 fields", http("/", { fields: "X: a\r\n".repeat(5000) }), ...TOO_MUCH],
  ["target of 10 kB", http(`/${"a".repeat(10_000)}`), "404"],
  ["target of 70 kB", http(`/${"a".repeat(70_000)}`), ...TOO_MUCH],
  ["target of 1 MB", http(`/${"a".repeat(1_000_000)}`), ...TOO_MUCH],
  ["absolute form", http("http://x/health"), "200 /health"],
  ["absolute form of another host", http("http://other:81/health?q"), "200 /health"],
  ["absolute form without a path", http("http://x"), "200 /"],
  ["absolute form with a query alone", http("http://x?/health"), "200 /"],
  ["absolute form with userinfo", http("http://u:p@x/health"), "200 /health"],
  ["absolute form and a bad Host", http("http://x/health", { host: "Host: a b\r\n" }), "400"],
  ["authority form", http("x:80"), "400"],
  ["asterisk form", http("*"), "400"],
  ["OPTIONS *", http("*", { method: "OPTIONS" }), "204"],
  ["OPTIONS * with a query", http("*?x", { method: "OPTIONS" }), "400"],
  ["CONNECT", http("x:80", { method: "CONNECT" }), "405"],
  ["CONNECT of a path", http("/", { method: "CONNECT" }), "400"],
  ["TRACE", http("/", { method: "TRACE" }), "405"],
  ["two slashes", http("//health"), "404"],
  ["encoded dots", http("/%2e%2e/health"), "404"],
  ["dots", http("/./health"), "404"],
  ["encoded slash", http("/%2fhealth"), "404"],
  ["encoded slash first", http("%2fhealth"), "400"],
  ["encoded NUL", http("/health%00"), "404"],
  ["path parameter", http("/health;x"), "404"],
  ["backslash", http("/\\health"), "404"],
  ["backslash first", http("\\health"), "400"],
  ["fragment", http("/health#x"), "200 /health"],
  ["fragment in an authority", http("http://x:5#0/health"), "200 /", "400"],
  ["UTF-8 in target", http("/\xc3\xa9"), "404"],
  ["Host that moves the path", http("/", { host: "Host: x/health?\r\n" }), "400"],
  ["Host with userinfo", http("/health", { host: "Host: u@x\r\n" }), "400"],
  ["Host of IPv6", http("/health", { host: "Host: [::1]:5000\r\n" }), "200 /health"],
  ["Host of half an IPv6", http("/", { host: "Host: [::1\r\n" }), "400"],
  ["Host that is not UTF-8", http("/", { host: "Host: \xff\r\n" }), "400"],
  ["empty Host", http("/", { host: "Host:\r\n" }), "400"],
  ["no Host", http("/health", { host: "" }), "200 /health"], // the version is not ours to see
  ["two Hosts", http("/", { fields: "Host: y\r\n" }), "400"],
  ["Host twice", http("/", { fields: "Host: x\r\n" }), "400"],
  [
    "two lengths",
    http("/", { method: "POST", fields: "Content-Length: 1\r\nContent-Length: 2\r\n", body: "ab" }),
    "400",
  ],
  ["list of lengths", http("/", { fields: "Content-Length: 1, 2\r\n", body: "ab" }), "400"],
  ["negative length", http("/", { fields: "Content-Length: -1\r\n" }), "400"],
  ["hexadecimal length", http("/", { fields: "Content-Length: 0x2\r\n", body: "ab" }), "400"],
  ["length beyond numbers", http("/", { fields: `Content-Length: ${"9".repeat(30)}\r\n` }), "400"],
  [
    "length and chunks", // RFC 9112, 6.3 lets a server refuse, or go by the chunks
    http("/", { method: "POST", fields: `Content-Length: 2\r\n${CHUNKED}`, body: "0\r\n\r\n" }),
    "400",
    "405",
  ],
  ["coding that is not known", http("/", { fields: "Transfer-Encoding: gzip\r\n", body: "x" }), "400"],
  ["chunks of HTTP/1.0", http("/", { version: "HTTP/1.0", fields: CHUNKED, body: "0\r\n\r\n" }), "400"],
  ["bad chunk", http("/health", { fields: CHUNKED, body: "zz\r\nab\r\n" }), "closed", "200 /health"],
  ["negative chunk", http("/", { method: "POST", fields: CHUNKED, body: "-1\r\n" }), "closed", "405"],
  [
    "Expect: 100-continue",
    http("/", { method: "POST", fields: "Expect: 100-continue\r\nContent-Length: 2\r\n" }),
    "405",
  ],
  ["Expect of something else", http("/health", { fields: "Expect: x\r\n" }), "200 /health"],
  ["Upgrade: h2c", http("/health", { fields: `Upgrade: h2c\r\n${UPGRADE}` }), "200 /health"],
  [
    "Upgrade: websocket",
    http("/health", { fields: "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n" }),
    "200 /health",
  ],
  ["HTTP/1.0", http("/health", { version: "HTTP/1.0", host: "" }), "200 /health"],
  [
    "HTTP/1.0 with keep-alive",
    http("/health", { version: "HTTP/1.0", fields: "Connection: keep-alive\r\n" }),
    "200 /health",
  ],
  ["HTTP/2 by prior knowledge", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", "HTTP/2"],
  ["latin-1 in User-Agent", http("/", { fields: "User-Agent: \xe9\xff\r\n" }), "200 /"],
  ["UTF-8 in X-Forwarded-For", http("/", { fields: "X-Forwarded-For: \xc3\xa9\r\n" }), "200 /"],
  [
    "forged log line",
    http("/", { fields: `User-Agent: x"}{"level":"error","msg":"forged"\x85\r\n` }),
    "200 /",
  ],
  ["body on GET", http("/health", { fields: "Content-Length: 5\r\n", body: "hello" }), "200 /health"],
  [
    "endless body",
    http("/", { method: "POST", fields: "Content-Length: 1000000000\r\n", body: "x".repeat(1_000_000) }),
    "405",
  ],
  [
    "endless chunks",
    http("/", { method: "POST", fields: CHUNKED, body: `1000\r\n${"x".repeat(4096)}\r\n`.repeat(100) }),
    "405",
  ],
];

/** Requests of the soak; unset, there is none. */
const SOAK = Deno.env.get("SOAK");
const FAKETIME = Array.from(
  ["x86_64", "aarch64"],
  (cpu) => `/usr/lib/${cpu}-linux-gnu/faketime/libfaketime.so.1`,
)
  .find(exists);

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

async function isInstalled(program: string): Promise<boolean> {
  try {
    await new Deno.Command(program, { args: ["-v"], stdout: "null", stderr: "null" }).output();
    return true;
  } catch {
    return false;
  }
}

/** What the service holds, from /proc. */
async function resources(run: Run) {
  const pid = await run.pid();
  const [, kilobytes] = /^VmRSS:\s+(\d+)/m.exec(await Deno.readTextFile(`/proc/${pid}/status`))!;
  const descriptors = [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
  return { megabytes: Math.round(Number(kilobytes) / 1024), descriptors };
}

async function descriptorsAreBack(run: Run, most: number) {
  await until(async () => (await resources(run)).descriptors <= most, "the descriptors to come back");
}

function cpuSeconds(pid: number): number {
  const fields = Deno.readTextFileSync(`/proc/${pid}/stat`).split(") ")[1]!.split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100; // user and system, in ticks
}

/** Loads the service for two seconds and gives the number of requests that were answered with 2xx. */
async function wrk(port: number, path: string): Promise<number> {
  const { stdout } = await new Deno.Command("wrk", {
    args: ["-t1", "-c32", "-d2s", `http://127.0.0.1:${port}${path}`],
  }).output();
  const report = new TextDecoder().decode(stdout);
  assertNotMatch(report, /Non-2xx|Socket errors/);
  return Number(/(\d+) requests in/.exec(report)![1]);
}

/** A small generator of random numbers (mulberry32), so that a seed says it all. */
function randomFrom(seed: number) {
  const next = () => {
    seed = seed + 0x6d2b79f5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
  const below = (limit: number) => Math.floor(next() * limit);
  return { below, of: <T>(items: readonly T[]): T => items[below(items.length)]! };
}

type Random = ReturnType<typeof randomFrom>;

const VALID = [
  http("/"),
  http("/health"),
  http("/health", { version: "HTTP/1.0", host: "" }),
  http("/health", { method: "HEAD" }),
  http("/?q=/health", { fields: "User-Agent: curl/8.5.0\r\nAccept: */*\r\nX-Forwarded-For: 192.0.2.1\r\n" }),
  http("/", { method: "OPTIONS" }),
  http("/", { method: "POST", fields: "Content-Length: 5\r\n", body: "hello" }),
  http("/", { method: "POST", fields: "Transfer-Encoding: chunked\r\n", body: "5\r\nhello\r\n0\r\n\r\n" }),
  http("http://x:5000/health"),
  http("/nowhere") + http("/health"),
];
const TOKENS = [
  ...["\0", "\r", "\n", "\r\n", " ", "\t", ":", "/", "//", "?", "#", "@", "%", "\\", "*", "[", "]", "\xff"],
  ...["/health", "Host: y\r\n", "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n", "HTTP/1.1"],
  ...[
    "-1",
    "99999999999999999999",
    "0x10",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "a".repeat(9000),
  ],
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

/**
 * Replaces three instances behind HAProxy in turn, twice over, under constant load from clients that
 * keep their connections and clients that do not.
 */
async function rollingUpdate(form: Form, signal: "SIGTERM" | "SIGKILL") {
  const [frontend = 0, stats = 0, ...ports] = [freePort(), freePort(), freePort(), freePort(), freePort()];
  const configuration = await Deno.makeTempFile({ suffix: ".cfg" });
  await Deno.writeTextFile(
    configuration,
    `
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
`,
  );
  // inter × (fall + 1) is 0.75 s, so that the drain has room for a machine that is busy
  const instance = (port: number) => start(form, { PORT: String(port), DRAIN_SECONDS: "2" });
  const instances = await Promise.all(ports.map(instance));
  const haproxy = new Deno.Command("haproxy", {
    args: ["-db", "-f", configuration],
    stdout: "null",
    stderr: "null",
  }).spawn();
  const isUp = async (port: number) => {
    const response = await fetch(`http://127.0.0.1:${stats}/;csv`).catch(() => null);
    const line = (await response?.text() ?? "").split("\n").find((line) => line.includes(`,s${port},`));
    return line?.split(",")[17]?.startsWith("UP") ?? false;
  };
  const failures: string[] = [];
  let requests = 0;
  let running = true;
  const load = async (request: () => Promise<string>) => {
    while (running) {
      requests++;
      const result = await request().catch(String);
      if (result !== "200") failures.push(result);
    }
  };
  const keepAlive = async () => {
    const response = await fetch(`http://127.0.0.1:${frontend}/`);
    await response.body?.cancel();
    return String(response.status);
  };
  const oneShot = async () => String((await ask(frontend, "GET /")).status);
  try {
    for (const port of ports) await until(() => isUp(port), "HAProxy to see an instance");
    const clients = [keepAlive, keepAlive, keepAlive, oneShot, oneShot, oneShot].map(load);
    for (let turn = 0; turn < 6; turn++) {
      const index = turn % 3;
      const port = ports[index]!;
      if (signal === "SIGTERM") {
        instances[index]!.kill(signal);
        assertEquals(await instances[index]!.code(), 0);
      } else await instances[index]!.destroy();
      instances[index] = await instance(port);
      await until(() => isUp(port), "HAProxy to see the new instance");
    }
    running = false;
    await Promise.all(clients);
  } finally {
    running = false;
    haproxy.kill("SIGKILL");
    await haproxy.status;
    for (const instance of instances) await instance[Symbol.asyncDispose]();
    await Deno.remove(configuration);
  }
  return { requests, failures };
}

for (const form of FORMS) {
  const isImage = form.name === "image";
  const test = testOf(form);

  test(`${HOSTILE.length} hostile requests get their status, and the next one its answer`, async () => {
    await using service = await start(form, { LOG_LEVEL: "debug", TRUST_PROXY: "1" });
    for (const [name, bytes, ...expected] of HOSTILE) {
      const found = await outcome(service.port, bytes);
      assert(expected.includes(found), `${name}: ${found} instead of ${expected.join(" or ")}`);
      assertEquals((await health(service.port)).status, 200, `after ${name}`);
    }
    service.kill("SIGTERM");
    await service.code();
    const requests = service.lines.filter(({ msg }) => msg === "request");
    assertEquals(service.lines.length - requests.length, 3, "start, drain and stop, nothing forged");
    assertEquals(requests.filter(({ level }) => level === "error"), []);
  });

  test("two pipelined requests get two answers, in order", async () => {
    await using service = await start(form);
    const answers = await exchange(service.port, http("/") + http("/health", { version: "HTTP/1.0" }));
    assertMatch(answers, /^HTTP\/1\.1 200 [^]*"endpoints"[^]*HTTP\/1\.0 200 [^]*"healthy"/);
  });

  test("HTTP/2 gets the same answers", async () => {
    await using service = await start(form);
    using client = Deno.createHttpClient({ http1: false, http2: true });
    for (const [path, expected] of [["/", 200], ["/health", 200], ["/nowhere", 404]] as const) {
      const response = await fetch(`http://127.0.0.1:${service.port}${path}`, { client });
      assertEquals([response.status, (await response.text()).endsWith("}\n")], [expected, true]);
    }
  });

  test("thousands of mutated requests: no 5xx, no other route's answer, no hang", async () => {
    const seed = Number(Deno.env.get("FUZZ_SEED") || Date.now() % 2 ** 32);
    const count = Number(Deno.env.get("FUZZ_COUNT") || 3000);
    console.log(`FUZZ_SEED=${seed} FUZZ_COUNT=${count}`);
    const random = randomFrom(seed);
    await using service = await start(form, { TRUST_PROXY: "1" });
    const mutant = () => {
      let bytes = random.of(VALID);
      for (let n = random.below(4); n >= 0; n--) bytes = random.of(MUTATIONS)(bytes, random);
      return bytes;
    };
    const worker = async (share: number) => {
      while (share-- > 0) {
        const bytes = mutant();
        const found = await outcome(service.port, bytes, true);
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
    await Promise.all(Array.from({ length: 16 }, () => worker(count / 16)));
    assertEquals((await health(service.port)).status, 200);
    service.kill("SIGTERM");
    await service.code();
    assertEquals(service.lines.filter(({ level }) => level === "error"), []);
  });

  test("thousands of half requests: probes answer, and memory stays bounded", async () => {
    await using service = await start(form, {}, { memory: "512m" });
    const before = await resources(service);
    const peaks = [];
    for (let wave = 0; wave < 5; wave++) {
      const clients = await Promise.all(
        Array.from({ length: 5000 }, () => Deno.connect({ hostname: "127.0.0.1", port: service.port })),
      );
      await Promise.all(clients.map((client) => send(client, "GET / HTTP/1.1\r\nHost: x\r\nX-Half: ")));
      assertEquals((await health(service.port)).status, 200);
      peaks.push((await resources(service)).megabytes);
      for (const client of clients) client.close();
      await descriptorsAreBack(service, before.descriptors + 5);
    }
    console.log(`${before.megabytes} MB, then ${peaks.join(", ")} MB`);
    // the C library keeps what was freed for the next wave, which then needs no more
    assert(Math.max(...peaks) < 350, `${peaks} MB`);
    assert(peaks[4]! < peaks[3]! * 1.1, `${peaks} MB`);
  }, Deno.build.os !== "linux");

  test("a thousand clients that never read: probes answer, and descriptors come back", async () => {
    await using service = await start(form, {}, { memory: "512m" });
    const before = await resources(service);
    const clients = await Promise.all(
      Array.from({ length: 1000 }, () => Deno.connect({ hostname: "127.0.0.1", port: service.port })),
    );
    // more answers than the kernel buffers, so that the service itself is stuck with them
    await Promise.all(clients.map((client) => send(client, http("/").repeat(100))));
    assertEquals((await health(service.port)).status, 200);
    const { megabytes } = await resources(service);
    console.log(`${before.megabytes} MB, then ${megabytes} MB`);
    assert(megabytes < 350, `${megabytes} MB`);
    for (const client of clients) client.close();
    await descriptorsAreBack(service, before.descriptors + 5);
  }, Deno.build.os !== "linux");

  test("clients that connect and reset in a loop leave nothing behind", async () => {
    await using service = await start(form);
    const before = await resources(service);
    for (let n = 0; n < 2000; n++) {
      const client = await Deno.connect({ hostname: "127.0.0.1", port: service.port });
      await send(client, http("/"));
      client.close(); // with an answer unread, which makes it a reset
      if (n % 500 === 0) assertEquals((await health(service.port)).status, 200);
    }
    await descriptorsAreBack(service, before.descriptors + 5);
    const { megabytes } = await resources(service);
    console.log(`${before.megabytes} MB, then ${megabytes} MB`);
    assert(megabytes < 350, `${megabytes} MB`);
    assertEquals((await health(service.port)).status, 200);
  }, Deno.build.os !== "linux");

  test("out of descriptors it neither dies nor spins, and recovers", async () => {
    await using service = await start(form, {}, { descriptors: 64 });
    const connect = () => Deno.connect({ hostname: "127.0.0.1", port: service.port });
    const first = await connect();
    const attempts = await Promise.allSettled(Array.from({ length: 100 }, connect));
    const clients = attempts.flatMap((attempt) => attempt.status === "fulfilled" ? [attempt.value] : []);
    await until(async () => (await resources(service)).descriptors >= 60, "descriptors to run out");
    await send(first, http("/health"));
    assertMatch(await receiveSome(first), /"healthy"/); // who is in is served

    const pid = await service.pid();
    const begun = cpuSeconds(pid);
    await new Promise((resolve) => setTimeout(resolve, 1000)); // the time to spin in
    assert(cpuSeconds(pid) - begun < 0.5, "spins");

    for (const client of [first, ...clients]) client.close();
    await until(async () => {
      try {
        return (await health(service.port)).status === 200;
      } catch {
        return false;
      }
    }, "the port to open again");
    assertEquals(await service.pid(), pid);
    service.kill("SIGTERM");
    assertEquals(await service.code(), 0);
  }, Deno.build.os !== "linux");

  test("SIGUSR2 switches /health between healthy and unhealthy, and nothing else", async () => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
    const probe = async () => {
      const { status, headers, body } = await health(service.port);
      return [status, JSON.parse(body).status, headers.get("connection")];
    };
    for (const [code, status] of [[503, "unhealthy"], [200, "healthy"], [503, "unhealthy"]] as const) {
      service.kill("SIGUSR2");
      await until(async () => (await probe())[0] === code, `${code}`);
      assertEquals((await probe()).slice(0, 2), [code, status]);
      assertEquals((await ask(service.port, "GET /")).status, 200);
    }
    service.kill("SIGTERM");
    await service.output(/"msg":"draining"/);
    service.kill("SIGUSR2");
    assertEquals((await probe()).slice(0, 2), [503, "draining"]);
    service.kill("SIGTERM");
    assertEquals(await service.code(), 143);
    const switches = service.lines.filter(({ msg }) => msg === "health switched by hand");
    assertEquals(switches.map(({ level, status }) => [level, status]), [
      ["warn", "unhealthy"],
      ["warn", "healthy"],
      ["warn", "unhealthy"],
    ]);
  }, Deno.build.os === "windows");

  test("uptime stays monotonic while the wall clock jumps a day back and forth", async () => {
    const file = await Deno.makeTempFile();
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
      await until(async () => {
        const { timestamp, uptime_seconds } = JSON.parse((await health(service.port)).body);
        assert(uptime_seconds >= last && uptime_seconds < 60, `${uptime_seconds} after ${last}`);
        last = uptime_seconds;
        return timestamp.startsWith(`2026-01-0${day}`);
      }, "the clock to jump");
    }
    await Deno.remove(file);
  }, isImage || !FAKETIME);

  test("a rolling update behind HAProxy loses nothing with a drain, and something without", async () => {
    const drained = await rollingUpdate(form, "SIGTERM");
    assertEquals(drained.failures, []);
    assert(drained.requests > 1000, `${drained.requests} requests`);
    const killed = await rollingUpdate(form, "SIGKILL");
    assert(killed.failures.length > 0, "a kill without a drain is noticed");
    console.log(
      `failed requests: ${drained.failures.length} of ${drained.requests} with a drain, ` +
        `${killed.failures.length} of ${killed.requests} with SIGKILL`,
    );
  }, !await isInstalled("haproxy"));

  test("a soak leaves memory and descriptors as they were", async () => {
    await using service = await start(form, {}, { memory: "512m" });
    const total = Number(SOAK);
    const { descriptors } = await resources(service);
    const seen = [];
    let requests = 0;
    for (let tenth = 1; tenth <= 10; tenth++) {
      for (let round = 0; requests < total * tenth / 10; round++) {
        requests += await wrk(service.port, round % 2 ? "/health" : "/");
      }
      await descriptorsAreBack(service, descriptors + 2); // wrk leaves without waiting
      seen.push(await resources(service));
    }
    const [first, last] = [seen.at(0)!, seen.at(-1)!];
    console.log(`${requests} requests: ${seen.map(({ megabytes }) => megabytes).join(", ")} MB`);
    assert(last.megabytes <= first.megabytes * 1.1, "memory grows"); // that it falls is no fault
    assert(Math.abs(last.descriptors - first.descriptors) <= 2, "descriptors");
    service.kill("SIGTERM");
    assertEquals(await service.code(), 0);
  }, !SOAK || !await isInstalled("wrk"));
}

// ---- The page and telemetry ----

const CHROMIUM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(exists);
const BROWSER_ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
const HOSTILE_AGENTS = [
  "<script>alert(1)</script>",
  `"><img src=x onerror=alert(1)>`,
  "</dd></dl><style>body{display:none}</style>",
  "&lt;b&gt; ' &#x3c;",
];

function unescape(html: string): string {
  return html.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(code));
}

for (const form of FORMS) {
  const test = testOf(form);

  test("GET / is a page for who prefers HTML, and JSON for everybody else", async () => {
    await using service = await start(form);
    for (
      const [accept, type] of [
        [BROWSER_ACCEPT, "text/html"],
        ["text/html", "text/html"],
        ["text/*", "text/html"],
        ["application/json;q=0.5, text/html", "text/html"],
        ["*/*", "application/json"],
        ["application/json", "application/json"],
        ["text/html;q=0.5, application/json", "application/json"],
        ["application/*, text/html;q=0.9", "application/json"],
        ["text/html;q=0", "application/json"],
        ["image/png", "application/json"],
        ["nonsense", "application/json"],
        ["", "application/json"],
        [undefined, "application/json"],
      ] as const
    ) {
      const fields = ["Host: x", ...(accept === undefined ? [] : [`Accept: ${accept}`])];
      const { status, headers, body } = await ask(service.port, "GET /", { fields });
      assertEquals([status, headers.get("content-type")], [200, `${type}; charset=utf-8`], accept);
      assertMatch(headers.get("vary")!, /\baccept\b(?!-)/i);
      assertEquals(headers.get("cache-control"), "no-store");
      const head = await ask(service.port, "HEAD /", { fields });
      const length = new TextEncoder().encode(body).length;
      assertEquals(head.headers.get("content-length"), String(length), "HEAD");
    }
    const { headers } = await ask(service.port, "GET /health", { fields: ["Host: x", "Accept: text/html"] });
    assertEquals(headers.get("content-type"), "application/json; charset=utf-8");
  });

  test("the page shows the JSON object, allows nothing but its style, and escapes", async () => {
    await using service = await start(form);
    for (const agent of HOSTILE_AGENTS) {
      const fields = ["Host: x", `User-Agent: ${agent}`];
      const json = JSON.parse((await ask(service.port, "GET /", { fields })).body);
      const page = await ask(service.port, "GET /", { fields: [...fields, "Accept: text/html"] });

      const style = /<style>([^]*?)<\/style>/.exec(page.body)![1]!;
      const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(style));
      const policy = page.headers.get("content-security-policy")!.split("; ");
      assert(policy.includes("default-src 'none'") && policy.includes("frame-ancestors 'none'"));
      assert(
        policy.includes(`style-src 'sha256-${btoa(String.fromCharCode(...new Uint8Array(hash)))}'`),
        "the policy names another style",
      );
      assertEquals(page.headers.get("referrer-policy"), "no-referrer");
      assertNotMatch(page.body, /<script|<img|onerror=alert\(1\)>|<\/dd><\/dl><style/);
      assertEquals(page.body.match(/(src|href)="[^"]{0,5}/g), [`href="data:`], "an outside resource");

      const items = [...page.body.matchAll(/<dt>(.*?)<\/dt><dd>(.*?)<\/dd>/g)]
        .map(([, key, value]) => [key!.replaceAll(" ", "_"), unescape(value!)]);
      const { name, description, ...rest } = json.service;
      const expected = [rest, json.system, json.runtime, json.request, ...json.endpoints]
        .flatMap((section) => Object.entries(section).map(([key, value]) => [key, String(value)]));
      const withoutTime = (entries: unknown[][]) =>
        entries.filter(([key]) => key !== "current_time" && key !== "uptime_seconds");
      assertEquals(withoutTime(items as unknown[][]), withoutTime(expected));
      assertMatch(page.body, new RegExp(`<h1>${name}</h1><strong class="healthy">healthy</strong>`));
      assert(page.body.includes(description));
    }
    service.kill("SIGUSR2");
    await service.output(/switched by hand/);
    const { status, body } = await ask(service.port, "GET /", { fields: ["Host: x", "Accept: text/html"] });
    assertEquals(status, 200);
    assertMatch(body, /<title>devops-info-service: unhealthy<\/title>[^]*<strong class="unhealthy">/);
  }, Deno.build.os === "windows");
}

/** Lets Chromium load a page and gives its DOM, what it has to complain of, and its first pixel. */
async function browse(url: string, flags: string[] = []) {
  const folder = await Deno.makeTempDir();
  const chromium = async (...args: string[]) => {
    const { stdout, stderr } = await new Deno.Command(CHROMIUM!, {
      signal: AbortSignal.timeout(60_000),
      args: [
        ...["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
        ...["--disable-background-networking", "--disable-component-update", "--disable-sync"],
        ...[`--user-data-dir=${folder}/profile`, "--enable-logging=stderr", ...flags, ...args, url],
      ],
    }).output();
    return [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes));
  };
  try {
    const [dom = "", log = ""] = await chromium("--dump-dom");
    await chromium("--window-size=390,844", `--screenshot=${folder}/page.png`);
    const pixel = await firstPixel(await Deno.readFile(`${folder}/page.png`));
    return { dom, complaints: log.split("\n").filter((line) => line.includes("CONSOLE")), pixel };
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** The pixel that every filter of PNG leaves as it is: the one at the top left, as red, green, blue. */
async function firstPixel(png: Uint8Array<ArrayBuffer>): Promise<number[]> {
  const view = new DataView(png.buffer, png.byteOffset);
  const chunks: Uint8Array<ArrayBuffer>[] = [];
  for (let at = 8; at < png.length; at += 12 + view.getUint32(at)) {
    const type = String.fromCharCode(...png.subarray(at + 4, at + 8));
    if (type === "IDAT") chunks.push(png.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const pixels = new Blob(chunks).stream().pipeThrough(new DecompressionStream("deflate"));
  return [...await new Response(pixels).bytes()].slice(1, 4);
}

Deno.test({
  name: "source: Chromium shows the page in both schemes and has nothing to complain of",
  ignore: !CHROMIUM,
  fn: async () => {
    await using service = await start(FORMS[0]!);
    const url = `http://127.0.0.1:${service.port}/`;
    const light = await browse(url, ["--blink-settings=preferredColorScheme=1"]);
    const dark = await browse(url, ["--blink-settings=preferredColorScheme=0"]);
    assertEquals([light.complaints, dark.complaints], [[], []]);
    assertEquals(light.pixel, [255, 255, 255]);
    assert(dark.pixel.every((part) => part < 64), `${dark.pixel} is not dark`);
    assertMatch(light.dom, /<strong class="healthy">healthy<\/strong>/);
    for (const agent of HOSTILE_AGENTS) {
      const { dom, complaints } = await browse(url, [`--user-agent=${agent}`]);
      assertEquals(complaints, []);
      const text = /<dt>user agent<\/dt><dd>(.*?)<\/dd>/.exec(dom)?.[1] ?? "";
      const shown = text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
      assertEquals(shown, agent);
    }
  },
});

Deno.test({
  name: "Chromium would complain of a page that breaks its policy",
  ignore: !CHROMIUM,
  fn: async () => {
    const headers = { "content-type": "text/html", "content-security-policy": "default-src 'none'" };
    await using server = Deno.serve(
      { hostname: "127.0.0.1", port: 0, onListen() {} },
      () => new Response("<!doctype html><style>body { color: red }</style>", { headers }),
    );
    const { complaints } = await browse(`http://127.0.0.1:${server.addr.port}/`);
    assertMatch(complaints.join(), /Content Security Policy/);
  },
});

/** A small OTLP receiver: keeps what is exported to it, by path. */
function receiveTelemetry() {
  // deno-lint-ignore no-explicit-any
  const received: Record<string, any[]> = { "/v1/traces": [], "/v1/metrics": [], "/v1/logs": [] };
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, async (request) => {
    received[new URL(request.url).pathname]!.push(await request.json());
    return Response.json({});
  });
  const env = {
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${server.addr.port}`,
    OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    OTEL_METRIC_EXPORT_INTERVAL: "200",
    OTEL_BSP_SCHEDULE_DELAY: "100",
    OTEL_BLRP_SCHEDULE_DELAY: "100",
  };
  return {
    env,
    stop: () => server.shutdown(),
    spans: () =>
      received["/v1/traces"]!.flatMap(({ resourceSpans }) =>
        resourceSpans.flatMap(({ scopeSpans }: { scopeSpans: { spans: unknown[] }[] }) =>
          scopeSpans.flatMap(({ spans }) => spans)
        )
      ),
    metrics: () => JSON.stringify(received["/v1/metrics"]),
    logs: () =>
      received["/v1/logs"]!.flatMap(({ resourceLogs }) =>
        resourceLogs.flatMap(({ scopeLogs }: { scopeLogs: { logRecords: unknown[] }[] }) =>
          scopeLogs.flatMap(({ logRecords }) => logRecords)
        )
      ),
    isEmpty: () => Object.values(received).every((batches) => batches.length === 0),
  };
}

const TRACE = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT = "00f067aa0ba902b7";
const TRACED = ["Host: x", `traceparent: 00-${TRACE}-${PARENT}-01`];
const otelImage = Deno.env.get("OTEL_IMAGE");

for (const form of [FORMS[0]!, ...(otelImage ? [imageForm(otelImage)] : [])]) {
  Deno.test(`${form.name}: with OTEL_DENO it exports span, metric and log line of a request`, async () => {
    const telemetry = receiveTelemetry();
    const chosen = form.name === "source" ? { OTEL_DENO: "true", OTEL_DENO_CONSOLE: "replace" } : {};
    try {
      await using service = await start(form, { ...telemetry.env, ...chosen });
      await ask(service.port, "GET /", { fields: TRACED });
      await until(() => telemetry.metrics().includes("http.server.request.duration"), "the metric");
      await until(() => telemetry.spans().some(({ traceId }) => traceId === TRACE), "the span");
      service.kill("SIGTERM");
      assertEquals(await service.code(), 0);
      const span = telemetry.spans().find(({ traceId }) => traceId === TRACE);
      assertEquals([span.parentSpanId, span.kind], [PARENT, 2], "a server span under the caller's");
      assertEquals(telemetry.spans().length, 1, "and no other");
      await until(() => telemetry.logs().some(({ traceId }) => traceId === TRACE), "the log line");
      const record = telemetry.logs().find(({ traceId }) => traceId === TRACE);
      assertEquals([record.spanId, record.severityText], [span.spanId, "INFO"]);
      const line = JSON.parse(record.body.stringValue);
      assertEquals([line.msg, line.path], ["request", "/"]);
      await using version = new Run(form, { ...telemetry.env, ...chosen }, ["--version"]);
      assertEquals([await version.code(), version.stdout !== ""], [0, true]);
      // standard output has each line once, as ever
      assertEquals(service.lines.map(({ msg }) => msg), ["listening", "request", "draining", "stopped"]);
    } finally {
      await telemetry.stop();
    }
  });
}

Deno.test("source: a collector that never answers holds up neither probe nor stop", async () => {
  const [, timeout] = /OTEL_EXPORTER_OTLP_TIMEOUT=(\d+)/.exec(await Deno.readTextFile("Dockerfile"))!;
  using silent = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const env = {
    OTEL_DENO: "true",
    OTEL_DENO_CONSOLE: "replace",
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${silent.addr.port}`,
    OTEL_EXPORTER_OTLP_TIMEOUT: timeout!,
  };
  await using service = await start(FORMS[0]!, env);
  await ask(service.port, "GET /");
  let begun = Date.now();
  const probeEnv = { ...env, HOST: "127.0.0.1", PORT: String(service.port) };
  await using probe = new Run(FORMS[0]!, probeEnv, ["--health"]);
  assertEquals(await probe.code(), 0);
  assert(Date.now() - begun < 8000, "without a limit the exporter waits for ten seconds");
  begun = Date.now();
  service.kill("SIGTERM");
  assertEquals(await service.code(), 0);
  assert(Date.now() - begun < 8000, "docker kills after ten seconds");
});

for (const form of FORMS) {
  Deno.test(`${form.name}: without OTEL_DENO it exports nothing`, async () => {
    const telemetry = receiveTelemetry();
    try {
      // an executable has it decided when it is compiled
      const tried = form.name === "source" ? {} : { OTEL_DENO: "true" };
      await using service = await start(form, { ...telemetry.env, ...tried });
      await ask(service.port, "GET /", { fields: TRACED });
      service.kill("SIGTERM");
      assertEquals(await service.code(), 0);
      assert(telemetry.isEmpty());
    } finally {
      await telemetry.stop();
    }
  });
}

// ---- The description of the API ----

const OPENAPI = JSON.parse(await Deno.readTextFile("docs/openapi.json"));

/** What the description says of a request: its operation, or that of any other method or path. */
function operationOf(method: string, path: string) {
  const { OtherMethod, OtherPath } = OPENAPI.components.pathItems;
  const item = OPENAPI.paths[path];
  return item?.[method.toLowerCase()] ?? (item ? OtherMethod.post : OtherPath.get);
}

function dereference(pointer: string) {
  return pointer.slice(2).split("/").reduce((node, key) => node[key], OPENAPI);
}

/** Lets ajv, which knows JSON Schema better than a test should, validate values by schemas in the description. */
async function validate(values: { schema: unknown; value: unknown; about: string }[]) {
  const script = `
    import { Ajv2020 } from "npm:ajv@8.20.0/dist/2020.js";
    import formats from "npm:ajv-formats@3.0.1";
    const { description, values } = JSON.parse(await new Response(Deno.stdin.readable).text());
    const ajv = new Ajv2020({ strict: false, allErrors: true });
    formats.default(ajv);
    ajv.addSchema({ $id: "http://description/", ...description });
    for (const { schema, value, about } of values) {
      const text = JSON.stringify(schema).replaceAll('"#/', '"http://description/#/');
      if (!ajv.validate(JSON.parse(text), value)) console.log(about, ajv.errorsText());
    }`;
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--quiet",
      "--no-lock",
      "--no-config",
      "--allow-all",
      `data:text/javascript,${encodeURIComponent(script)}`,
    ],
    stdin: "piped",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode(JSON.stringify({ description: OPENAPI, values })));
  await writer.close();
  const { success, stdout, stderr } = await within(child.output(), "ajv");
  assert(success, new TextDecoder().decode(stderr));
  return new TextDecoder().decode(stdout);
}

for (const form of FORMS) {
  Deno.test(`${form.name}: answers as docs/openapi.json says, and nothing else`, async () => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
    const values: { schema: unknown; value: unknown; about: string }[] = [];
    const seen = new Set<string>();
    const check = async (state: string) => {
      for (const path of ["/", "/health", "/nowhere"]) {
        for (const method of ["GET", "HEAD", "OPTIONS", "POST", "DELETE"]) {
          for (const fields of [["Host: x"], ["Host: x", "Accept: text/html"], ["Host: a b"]]) {
            const about = `${method} ${path} ${fields.join()} while ${state}`;
            const { status, headers, body } = await ask(service.port, `${method} ${path}`, { fields });
            const found = operationOf(method, path).responses[status];
            assert(found, `${about}: ${status} is not documented`);
            const response = found.$ref ? dereference(found.$ref) : found;
            seen.add(`${status} ${path}`);

            const names = Object.keys(response.headers ?? {});
            const documented = new Map(names.map((name) => [name.toLowerCase(), response.headers[name]]));
            for (const [name, reference] of documented) {
              const header = reference.$ref ? dereference(reference.$ref) : reference;
              if (header.required) assert(headers.has(name), `${about}: no ${name}`);
              const value = headers.get(name)
                ?.replace(/^Accept-Encoding, |, Accept-Encoding$/, "") // Deno 2.7 can compress
                .replace("close, close", "close"); // the runtime adds its own when a client asks for it
              if (value !== undefined) {
                values.push({ schema: header.schema, value, about: `${about} ${name}` });
              }
            }
            if (/^accept-encoding$/i.test(headers.get("vary") ?? "")) headers.delete("vary");
            const known = new Set(["date", "content-length", "content-type", ...documented.keys()]);
            assertEquals([...headers.keys()].filter((name) => !known.has(name)), [], about);

            const type = headers.get("content-type")?.split(";")[0];
            if (body === "") continue;
            const media = response.content?.[type!];
            assert(media, `${about}: ${type} is not documented`);
            const value = type === "application/json" ? JSON.parse(body) : body;
            if (media.schema) values.push({ schema: media.schema, value, about });
          }
        }
      }
    };
    await check("healthy");
    service.kill("SIGUSR2");
    await service.output(/switched by hand/);
    await check("unhealthy");
    service.kill("SIGTERM");
    await service.output(/"msg":"draining"/);
    await check("draining");

    assertEquals(await validate(values), "");
    for (const answer of ["200 /", "204 /", "400 /", "405 /", "200 /health", "503 /health", "404 /nowhere"]) {
      assert(seen.has(answer), `${answer} was not seen`);
    }
  });
}

Deno.test("docs/openapi.json has the version of deno.json, and its schemas refuse what is wrong", async () => {
  assertEquals(OPENAPI.info.version, project.version);
  const schema = { $ref: "#/components/schemas/Health" };
  const value = { status: "sick", timestamp: "yesterday", uptime_seconds: -1 };
  const complaints = await validate([{ schema, value, about: "" }]);
  for (const key of ["status", "timestamp", "uptime_seconds"]) {
    assert(complaints.includes(`data/${key}`), key);
  }
});

// ---- Deployments ----

Deno.test("the Kubernetes manifests agree with the service, its image and each other", async () => {
  const manifests = await Deno.readTextFile("docs/deploy/kubernetes.yaml");
  const dockerfile = await Deno.readTextFile("Dockerfile");
  const all = (pattern: RegExp, text = manifests) =>
    Array.from(text.matchAll(pattern), ([, value]) => value!);
  const one = (pattern: RegExp, text = manifests) => {
    const found = new Set(all(pattern, text));
    assertEquals(found.size, 1, `${pattern}: ${[...found]}`);
    return [...found][0]!;
  };
  const seconds = (probe: string) => {
    const part = manifests.slice(manifests.indexOf(`${probe}:`));
    return Number(/periodSeconds: (\d+)/.exec(part)![1]) * Number(/failureThreshold: (\d+)/.exec(part)![1]);
  };

  const port = one(/containerPort: (\d+)/g);
  assertEquals([port, one(/^EXPOSE (\d+)$/gm, dockerfile)], [String(DEFAULTS.PORT), port]);
  assertEquals(all(/^ +path: (\S+)$/gm), ["/health", "/health", "/health"]);
  assertEquals(all(/^ +port: (http)$/gm).length, 3);
  assertEquals(one(/targetPort: (\S+)/g), "http");
  const user = `${one(/runAsUser: (\d+)/g)}:${one(/runAsGroup: (\d+)/g)}`;
  assertEquals(user, one(/^USER (\S+)$/gm, dockerfile));
  assertEquals(one(/devops-info-service:([\d.]+)$/gm), project.version);
  assertEquals(one(/app\.kubernetes\.io\/version: "(.+)"/g), project.version);

  const variables = Object.fromEntries(
    Array.from(manifests.matchAll(/- name: ([A-Z_]+)\n +value: "(.*)"/g), ([, name, value]) => [name, value]),
  );
  const config = parse(variables);
  for (const name of Object.keys(variables)) assert(name in config, `${name} is no variable of ours`);
  const stopping = config.DRAIN_SECONDS + config.SHUTDOWN_SECONDS;
  assert(Number(one(/terminationGracePeriodSeconds: (\d+)/g)) > stopping);
  assert(seconds("livenessProbe") > config.DRAIN_SECONDS, "a drain must not look like sickness");
  assert(seconds("readinessProbe") < seconds("livenessProbe"), "out of the way before it is restarted");
});

// ---- What only the image shows ----

if (image) {
  const inspect = async (what: string, ...args: string[]) =>
    JSON.parse(await docker("inspect", "--format", `{{json ${what}}}`, ...args));

  Deno.test("image: says how to run it, with the least rights", async () => {
    const config = await inspect(".Config", image);
    assertEquals(config.User, "65532:65532");
    assertEquals(config.Entrypoint, ["/devops-info-service"]);
    assertEquals([config.Cmd ?? null, config.Volumes ?? null], [null, null]);
    assertEquals(Object.keys(config.ExposedPorts), ["5000/tcp"]);
    assert(config.Env.includes("DENO_USE_CGROUPS=1"));
    assertEquals(config.Healthcheck.Test, ["CMD", "/devops-info-service", "--health"]);
    const labels = ["title", "description", "licenses"].map((name) =>
      config.Labels[`org.opencontainers.image.${name}`]
    );
    assertEquals(labels[0], "devops-info-service");
    assert(labels.every(Boolean));
  });

  Deno.test("image: adds one file to its base, root's and writable by nobody", async () => {
    const files = async (name: string) => {
      const container = await docker("create", name, "/none");
      const archive = await Deno.makeTempFile();
      try {
        await docker("export", "--output", archive, container);
        const { stdout } = await new Deno.Command("tar", {
          args: ["--list", "--verbose", "--numeric-owner", "--file", archive],
        }).output();
        const lines = new TextDecoder().decode(stdout).trimEnd().split("\n");
        return new Map(lines.map((line) => {
          const [mode = "", owner = "", _size, _day, _time, path = ""] = line.split(/\s+/);
          return [path, `${mode} ${owner}`];
        }));
      } finally {
        await docker("rm", container);
        await Deno.remove(archive);
      }
    };
    const base = await inspect(
      '(index .Config.Labels "org.opencontainers.image.base.name")',
      image,
    );
    const [before, after] = [await files(base), await files(image)];
    const added = [...after].filter(([path]) => !before.has(path));
    assertEquals(added, [["devops-info-service", "-r-xr-xr-x 0/0"]]);
  });

  Deno.test("image: docker compose makes it healthy, serves it, and takes it down in order", async () => {
    const project = `devops-info-service-${crypto.randomUUID()}`;
    const PORT = String(freePort());
    const compose = async (...args: string[]) => {
      const { success, stderr } = await new Deno.Command("docker", {
        args: ["compose", "--file", "docs/deploy/compose.yaml", "--project-name", project, ...args],
        env: { PORT, IMAGE: image },
      }).output();
      assert(success, new TextDecoder().decode(stderr));
    };
    try {
      await compose("up", "--detach", "--no-build", "--wait");
      const container = await docker(
        "ps",
        "--quiet",
        "--filter",
        `label=com.docker.compose.project=${project}`,
      );
      const { State, HostConfig, Config } = await inspect(".", container);
      assertEquals(State.Health.Status, "healthy");
      const { ReadonlyRootfs, CapDrop, SecurityOpt, PidsLimit, Memory, RestartPolicy } = HostConfig;
      assertEquals([ReadonlyRootfs, CapDrop, SecurityOpt], [true, ["ALL"], ["no-new-privileges:true"]]);
      assertEquals([PidsLimit, Memory, RestartPolicy.Name], [64, 256 * 1024 * 1024, "unless-stopped"]);
      const config = parse(Object.fromEntries(Config.Env.map((entry: string) => entry.split("="))));
      assert(Config.StopTimeout > config.DRAIN_SECONDS + config.SHUTDOWN_SECONDS);
      assertEquals((await ask(Number(PORT), "GET /")).status, 200);
      assertEquals((await health(Number(PORT))).status, 200);
      await compose("stop");
      assertEquals(await inspect(".State.ExitCode", container), 0);
    } finally {
      await compose("down");
    }
  });

  Deno.test("image: SIGUSR2 takes Docker from healthy to unhealthy and back", async () => {
    const container = await docker(
      ...["run", "--detach", "--health-interval", "1s", "--health-retries", "1", image],
    );
    try {
      const becomes = (status: string) =>
        until(async () => await inspect(".State.Health.Status", container) === status, status);
      await becomes("healthy");
      await docker("kill", "--signal", "USR2", container);
      await becomes("unhealthy");
      const { Output } = (await inspect(".State.Health.Log", container)).at(-1);
      assertMatch(Output, /503 {"status":"unhealthy"/);
      await docker("kill", "--signal", "USR2", container);
      await becomes("healthy");
    } finally {
      await docker("rm", "--force", container);
    }
  });

  Deno.test("image: hardened and under any UID it becomes healthy and leaves in order", async () => {
    // bridge networks have no IPv6 by default, and :: is fine there all the same
    for (const [user, host] of [["65532:65532", "0.0.0.0"], ["12345:54321", "::"]] as const) {
      const container = await docker(
        ...["run", "--detach", "--user", user, "--publish", "127.0.0.1::5000", "--env", `HOST=${host}`],
        ...["--health-interval", "1s", ...HARDENED, "--memory", "128m", image],
      );
      try {
        let state;
        do {
          state = await inspect(".State", container);
          assert(state.Running, await docker("logs", container));
          await new Promise((resolve) => setTimeout(resolve, 100));
        } while (state.Health.Status === "starting");
        assertEquals(state.Health.Status, "healthy", JSON.stringify(state.Health));
        const port = Number((await docker("port", container, "5000/tcp")).split(":").at(-1));
        assertEquals((await ask(port, "GET /health")).status, 200);
        const begun = Date.now();
        await docker("stop", container);
        assert(Date.now() - begun < 5000, "docker kills after 10 s");
        assertEquals(await inspect(".State.ExitCode", container), 0);
      } finally {
        await docker("rm", "--force", container);
      }
    }
  });
}

// ---- What the files of the project must agree on ----

Deno.test("the service may listen, probe, read its variables and the machine, nothing else", async () => {
  const attempts = `
    const tries = {
      net: () => Deno.connect({ hostname: "127.0.0.2", port: 1 }),
      fetch: () => fetch("http://example.com"),
      env: () => Deno.env.get("HOME"),
      sys: () => Deno.networkInterfaces(),
      read: () => Deno.readTextFile("deno.json"),
      write: () => Deno.writeTextFile("dist/x", ""),
      run: () => new Deno.Command("true").output(),
      ffi: () => Deno.dlopen("libc.so.6", {}),
      HOST: () => Deno.env.get("HOST"),
      hostname: () => Deno.hostname(),
      osRelease: () => Deno.osRelease(),
    };
    for (const [name, attempt] of Object.entries(tries)) {
      try { await attempt(); console.log(name, "allowed"); }
      catch (error) { console.log(name, error.name); }
    }`;
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: [
      "run",
      "--quiet",
      ...SOURCE_FLAGS,
      `data:text/javascript,${encodeURIComponent(attempts)}`,
    ],
  }).output();
  assertEquals(new TextDecoder().decode(stdout).trim().split("\n"), [
    ...["net", "fetch", "env", "sys", "read", "write", "run", "ffi"].map((n) => `${n} NotCapable`),
    ...["HOST", "hostname", "osRelease"].map((name) => `${name} allowed`),
  ]);
});

Deno.test("dev, start and compile run with the same flags", () => {
  for (const task of ["dev", "start", "compile"] as const) {
    assertMatch(project.tasks[task].command, / \$\(deno task -q flags\) /);
    assertNotMatch(project.tasks[task].command, /--allow|--deny|-A|-P/);
  }
});

Deno.test("the permitted variables are the variables, the permitted hosts those of HOST", () => {
  const values = (flag: string) =>
    SOURCE_FLAGS.find((text) => text.startsWith(`${flag}=`))!.slice(flag.length + 1).split(",");
  assertEquals(values("--allow-env"), Object.keys(DEFAULTS));
  const hosts = VALUES[0]![1].map((host) => host.includes(":") ? `[${host}]` : host);
  assertEquals(values("--allow-net"), hosts);
});

Deno.test("README, Dockerfile and Compose name the same version of Deno", async () => {
  const [, pinned] = /^ARG DENO_VERSION=(.+)$/m.exec(await Deno.readTextFile("Dockerfile"))!;
  const named = (await Deno.readTextFile("README.md")).matchAll(/\bdeno@([\d.]+)/g);
  assertEquals([...new Set(Array.from(named, ([, version]) => version))], [pinned]);
  const compose = await Deno.readTextFile("docs/deploy/compose.yaml");
  assert(compose.includes(`DENO_VERSION:-${pinned}}`));
});
