/**
 * The contract of `main.ts`: configuration, answers and command line as functions; then the black box, which
 * holds every form of the service to it.
 */
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertGreater,
  assertGreaterOrEqual,
  assertLess,
  assertMatch,
  assertThrows,
} from "@std/assert";
import {
  type Config,
  createClock,
  createLogger,
  handle,
  main,
  parseConfig,
  type Service,
} from "./main.ts";
import project from "./deno.json" with { type: "json" };
import {
  ALLOW,
  BAD_HOSTS,
  bindTest,
  BROWSER_ACCEPT,
  connect,
  CONTRACT_FORMS,
  DEFAULTS,
  findFreePort,
  findSlowness,
  formatRequest,
  GOOD_HOSTS,
  HAS_IPV6,
  INFORMATION_KEYS,
  isRefused,
  launch,
  makeTempPath,
  OTHER_PATH,
  PATHS,
  probe,
  RFC_3339,
  sendFrames,
  sendHttp2,
  sendRaw,
  share,
  sleep,
  SOURCE,
  start,
  waitFor,
  waitUntil,
  wrapForm,
} from "./.ci/harness.ts";

// ---- Configuration and time ----

function parse(env: Record<string, string>, isTerminal = false): Config {
  return parseConfig(new Map(Object.entries(env)), isTerminal);
}

Deno.test("parseConfig() gives every default when nothing is set or all is empty", () => {
  assertEquals(parse({}), DEFAULTS);
  assertEquals(parse(Object.fromEntries(Object.keys(DEFAULTS).map((key) => [key, ""]))), DEFAULTS);
});

Deno.test("parseConfig() logs text by default when people read the log", () => {
  assertEquals(parse({}, true).LOG_FORMAT, "text");
  assertEquals(parse({ LOG_FORMAT: "json" }, true).LOG_FORMAT, "json");
  assertEquals({ ...parse({}, true), LOG_FORMAT: "json" }, DEFAULTS, "and nothing else");
});

const VALUES: [keyof Config, string, string[], string[]][] = [
  [
    "HOST",
    "0.0.0.0, ::, 127.0.0.1, ::1, localhost",
    ["0.0.0.0", "::", "127.0.0.1", "::1", "localhost"],
    ["example.com", "10.0.0.1", " ::"],
  ],
  [
    "PORT",
    "a whole number from 0 to 65535",
    ["0", "1", "8080", "65535"],
    ["65536", "-1", "5000.5", "http", "0x1F", " 80", "1e3", "000080"],
  ],
  ["LOG_LEVEL", "debug, info, warn, error", ["debug", "info", "warn", "error"], [
    "INFO",
    "trace",
    "0",
  ]],
  ["LOG_FORMAT", "json, text", ["json", "text"], ["xml", "JSON"]],
  ["TRUST_PROXY", "a whole number from 0 to 16", ["0", "1", "16"], ["17", "-1", "true"]],
  ["DRAIN_SECONDS", "a whole number from 0 to 300", ["0", "300"], ["301", "5s", "1.5"]],
  ["SHUTDOWN_SECONDS", "a whole number from 0 to 300", ["0", "300"], ["301", "∞"]],
];

for (const [name, allowed, good, bad] of VALUES) {
  Deno.test(`parseConfig() takes every allowed ${name} and names what is allowed for others`, () => {
    for (const value of good) assertEquals(String(parse({ [name]: value })[name]), value);
    for (const value of bad) {
      const { message } = assertThrows(() => parse({ [name]: value }), RangeError);
      assertEquals(message, `${name}=${JSON.stringify(value)}: allowed is ${allowed}`);
    }
  });
}

const BYPASSES = [
  ["DENO_SERVE_ADDRESS", "tcp:127.0.0.1:1", "HOST and PORT"],
  ["DENO_TRUST_PROXY_HEADERS", "1", "TRUST_PROXY"],
] as const;

Deno.test("parseConfig() takes an empty variable, Deno's own too, for one that is not set", () => {
  const names = [...Object.keys(DEFAULTS), ...BYPASSES.map(([name]) => name)];
  assertEquals(parse(Object.fromEntries(names.map((name) => [name, ""]))), DEFAULTS);
});

Deno.test("parseConfig() names every bad variable, one line each, whatever is in the value", () => {
  const { message } = assertThrows(
    () =>
      parse({
        PORT: "a\nb\x9b",
        LOG_LEVEL: "loud",
        TRUST_PROXY: "1",
        DENO_SERVE_ADDRESS: "c\nd\x9b",
      }),
    RangeError,
  );
  assertMatch(
    message,
    /^PORT="a\\nb\\u009b": .*\nLOG_LEVEL="loud": .*\nDENO_SERVE_ADDRESS="c\\nd\\u009b": not allowed, use HOST and PORT instead$/,
  );
});

Deno.test("parseConfig() treats a value that is not Unicode as bad, and hides no other failure", () => {
  const fail = (error: Error) => () =>
    parseConfig({
      get(name) {
        if (name === "PORT") throw error;
        return undefined;
      },
    }, false);
  assertThrows(fail(new Deno.errors.InvalidData()), RangeError, 'PORT="\ufffd": allowed is');
  assertThrows(fail(new Deno.errors.NotCapable("why")), Deno.errors.NotCapable, "why");
});

const NOON = "2026-01-07T12:00:00.000Z";

Deno.test("createClock() tells the time of its moment, to the millisecond", () => {
  let uptime = 0;
  const clock = createClock(() => Date.parse(NOON) + uptime * 2, () => uptime);
  for (
    const [milliseconds, current_time, uptime_seconds] of [
      [0, NOON, 0],
      [0.9, NOON, 0], // kept while the millisecond is the same
      [1, "2026-01-07T12:00:00.002Z", 0],
      [2.5, "2026-01-07T12:00:00.005Z", 0],
      [999.9, "2026-01-07T12:00:01.999Z", 0],
      [1000, "2026-01-07T12:00:02.000Z", 1],
      [59_999, "2026-01-07T12:01:59.998Z", 59],
    ] as const
  ) {
    uptime = milliseconds;
    const { uptime_human, ...rest } = clock.describe();
    assertEquals(rest, { uptime_seconds, current_time, timezone: "UTC" }, `${milliseconds} ms`);
    assertEquals([uptime_human, clock.monotonic()], ["0 hours, 0 minutes", milliseconds]);
  }
});

Deno.test("createClock() goes by the machine's clocks", async () => {
  const clock = createClock();
  const [begun, before] = [clock.monotonic(), clock.describe().current_time];
  assertAlmostEquals(Date.parse(before), Date.now(), 60_000);
  await sleep(20);
  assertGreaterOrEqual(clock.monotonic() - begun, 15);
  assertLess(clock.monotonic() - begun, 15_000);
  assert(clock.describe().current_time > before);
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
  Deno.test(`createClock() says an uptime of ${minutes} minutes as ${expected}`, () => {
    for (const milliseconds of [0, 59_999]) {
      const { describe } = createClock(Date.now, () => minutes * 60_000 + milliseconds);
      assertEquals(describe().uptime_human, expected);
      assertEquals(describe().uptime_seconds, minutes * 60 + Math.floor(milliseconds / 1000));
    }
  });
}

// ---- Answers ----

/** A service at noon that has run for so many milliseconds, and the log lines it writes. */
function serviceFor(config: Partial<Config> = {}, uptime = 0) {
  const time = { uptime };
  const clock = createClock(() => Date.parse(NOON) + time.uptime - uptime, () => time.uptime);
  const lines: string[] = [];
  const log = createLogger({ ...DEFAULTS, ...config }, clock, (bytes) => {
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
  return { service, log, lines, time };
}

/** The same service, where this happens once a request has come to `GET /`. */
function interrupt(service: Service, happen: () => void): Service {
  return Object.defineProperty({ ...service }, "system", {
    get() {
      happen();
      return service.system;
    },
  });
}

function fail(): never {
  throw new Error("the cause");
}

function get(path: string, headers: HeadersInit = {}, method = "GET"): Request {
  return new Request(`http://localhost${path}`, { headers, method });
}

function from(hostname: string) {
  return { remoteAddr: { hostname } };
}

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

Deno.test("handle() makes a new answer for each service, client and millisecond", async () => {
  const read = async (service: Service, agent: string) => {
    const answer = await handle(service, get("/", { "user-agent": agent }), from("::1")).json();
    const { timestamp } = await handle(service, get("/health"), from("::1")).json();
    assertEquals(answer.runtime.current_time, timestamp);
    return [
      answer.system.hostname,
      answer.request.user_agent,
      answer.request.path,
      timestamp.slice(17, 23),
    ];
  };
  for (const hostname of ["", '"', '"request":null', "request", "\\"]) {
    const { service, time } = serviceFor();
    const named = { ...service, system: { ...service.system, hostname } };
    assertEquals(await read(named, "a"), [hostname, "a", "/", "00.000"]);
    assertEquals(await read(named, "b"), [hostname, "b", "/", "00.000"]);
    time.uptime++;
    assertEquals(await read(named, "b"), [hostname, "b", "/", "00.001"]);
  }
});

Deno.test("handle() answers GET /health with the state, the time and the uptime", async () => {
  const { service } = serviceFor({}, 3_600_999);
  const body = (status: string) =>
    `{"status":"${status}","timestamp":"2026-01-07T12:00:00.000Z","uptime_seconds":3600}\n`;
  for (const [status, code] of [["healthy", 200], ["unhealthy", 503], ["draining", 503]] as const) {
    service.status = status;
    const response = handle(service, get("/health"), from("::1"));
    assertEquals([response.status, await response.text()], [code, body(status)]);
  }
});

Deno.test("handle() closes connections while draining, whatever it answers", () => {
  for (const status of ["healthy", "unhealthy", "draining"] as const) {
    const { service } = serviceFor();
    service.status = status;
    const answers = [
      ...[get("/"), get("/", { accept: "text/html" }), get("/", {}, "HEAD")],
      ...[get("/health"), get("/nowhere"), get("/nowhere", { accept: "text/html" })],
      ...[get("/", { host: "a b" }), get("/", {}, "POST"), get("/", {}, "OPTIONS")],
    ].map((request) => handle(service, request, from("::1")));
    answers.push(handle(interrupt(service, fail), get("/"), from("::1")));
    const healthCode = status === "healthy" ? 200 : 503;
    const expected = [200, 200, 200, healthCode, 404, 404, 400, 405, 204, 500];
    assertEquals(answers.map(({ status }) => status), expected);
    for (const { headers } of answers) {
      assertEquals(headers.get("connection"), status === "draining" ? "close" : null);
    }
  }
});

Deno.test("handle() gives HEAD the length in bytes of what GET would get, and no body", async () => {
  const { service } = serviceFor();
  const headers = { "user-agent": "\xe9\xe9" }; // two bytes each in UTF-8
  for (
    const [path, own] of [
      ["/", headers],
      ["/", { ...headers, accept: "text/html" }],
      ["/health", {}],
      ["/nowhere", {}],
      ["/nowhere", { ...headers, accept: "text/html" }],
      ["/", { host: "a b" }],
    ] as const
  ) {
    const got = handle(service, get(path, own), from("::1"));
    const head = handle(service, get(path, own, "HEAD"), from("::1"));
    const length = (await got.bytes()).length;
    assertEquals([head.status, head.body, head.headers.get("content-length")], [
      got.status,
      null,
      String(length),
    ]);
    head.headers.delete("content-length");
    assertEquals([...head.headers], [...got.headers]);
  }
});

/** What no proxy has seen as a client: the peer is shown instead. */
const NO_ADDRESSES = [
  ...[
    "203.0.113.7:",
    "203.0.113.7:123456",
    "203.0.113.7:http",
    "[203.0.113.7]:80",
    "[2001:db8::7",
    "[2001:db8::7]x",
  ],
  ...[
    "198.51.100.9, garbage",
    "203.0.113.256",
    "203.0.113",
    "203.0.113.7.8",
    "203..113.7",
    "203.0.113.007",
  ],
  ...[
    "0xcb.0.113.7",
    "2001:db8::7::1",
    "2001:db8::7%eth0",
    "12345::",
    "::1]/[",
    "unknown, ",
    "203.0.113.7, ",
  ],
];

for (
  const [proxies, forwarded, expected] of [
    [0, "203.0.113.7", "192.0.2.1"],
    [1, "", "192.0.2.1"],
    [1, "203.0.113.7", "203.0.113.7"],
    [1, "198.51.100.9, 203.0.113.7", "203.0.113.7"],
    [2, "198.51.100.9, 203.0.113.7", "198.51.100.9"],
    [2, "spoofed, 198.51.100.9 ,203.0.113.7", "198.51.100.9"],
    [2, "203.0.113.7", "192.0.2.1"],
    [2, "203.0.113.7, , 198.51.100.9", "192.0.2.1"], // an empty element counts
    // ports, as Azure's gateways send them
    [1, "203.0.113.7:5678", "203.0.113.7"],
    [1, "[2001:db8::7]:443", "2001:db8::7"],
    [1, "[2001:db8::7]", "2001:db8::7"],
    [2, "198.51.100.9:1, 203.0.113.7:2", "198.51.100.9"],
    // one spelling of one address
    [1, "2001:db8::7", "2001:db8::7"],
    [1, "2001:DB8:0::7", "2001:db8::7"],
    [1, "2001:0db8:0000:0000:0000:0000:0000:0007", "2001:db8::7"],
    [1, "[2001:DB8::0:7]:443", "2001:db8::7"],
    [1, "::ffff:203.0.113.7", "203.0.113.7"],
    [1, "::FFFF:203.0.113.7", "203.0.113.7"],
    [1, "::ffff:c000:207", "192.0.2.7"],
    [1, "::ffff:0:0", "0.0.0.0"],
    [1, "::ffff:ffff:ffff", "255.255.255.255"],
    [1, "0:0:0:0:0:ffff:c000:0207", "192.0.2.7"],
    [1, "[::ffff:192.0.2.7]:80", "192.0.2.7"],
    [1, "::1", "::1"],
    [1, "::", "::"],
    ...NO_ADDRESSES.map((text) => [1, text, "192.0.2.1"] as const),
  ] as const
) {
  Deno.test(`handle() sees ${expected} through ${proxies} proxies and "${forwarded}"`, async () => {
    const { service, log, lines } = serviceFor({ TRUST_PROXY: proxies });
    const request = get("/", { "x-forwarded-for": forwarded });
    assertEquals(
      (await handle(service, request, from("192.0.2.1")).json()).request.client_ip,
      expected,
    );
    await log.flush(1000);
    assertEquals(JSON.parse(lines[0]!).client_ip, expected, "the log");
  });
}

Deno.test("handle() shows a peer's address in one spelling, IPv4 of a dual-stack socket as IPv4", async () => {
  const { service } = serviceFor();
  for (
    const [peer, expected] of [
      ["192.0.2.1", "192.0.2.1"],
      ["::ffff:192.0.2.1", "192.0.2.1"],
      ["::ffff:c000:201", "192.0.2.1"],
      ["2001:db8::1", "2001:db8::1"],
      ["2001:DB8:0::1", "2001:db8::1"],
    ] as const
  ) assertEquals((await handle(service, get("/"), from(peer)).json()).request.client_ip, expected);
});

Deno.test("handle() shows an empty User-Agent, and none, as unknown", async () => {
  const { service } = serviceFor();
  for (const headers of [{}, { "user-agent": "" }] as HeadersInit[]) {
    const { request } = await handle(service, get("/", headers), from("::1")).json();
    assertEquals(request.user_agent, "unknown");
  }
});

Deno.test("handle() answers 500 with nothing of the cause, which goes to the log", async () => {
  const { service, log, lines } = serviceFor();
  const response = handle(interrupt(service, fail), get("/"), from("::1"));
  assertEquals(response.status, 500);
  assertEquals(
    await response.text(),
    `{"error":"Internal Server Error","message":"An unexpected error occurred"}\n`,
  );
  assertEquals(response.headers.get("cache-control"), "no-store");
  await log.flush(1000);
  const { level, status, error } = JSON.parse(lines[0]!);
  assertEquals([level, status], ["error", 500]);
  assertMatch(error, /the cause\n +at /, "with its stack");
});

Deno.test("handle() logs probes at debug, the rest at info, 5xx at error", async () => {
  const { service, log, lines } = serviceFor({ LOG_LEVEL: "debug" });
  handle(service, get("/"), from("::1"));
  handle(service, get("/health"), from("::1"));
  handle(service, get("/nowhere"), from("::1"));
  handle(service, get("/health", {}, "POST"), from("::1"));
  handle(service, get("/health", {}, "HEAD"), from("::1"));
  service.status = "draining";
  handle(service, get("/health"), from("::1"));
  await log.flush(1000);
  assertEquals(lines.map((line) => JSON.parse(line)).map(({ level, status }) => [level, status]), [
    ["info", 200],
    ["debug", 200],
    ["info", 404],
    ["info", 405],
    ["debug", 200],
    ["error", 503],
  ]);
});

Deno.test("handle() logs the duration in milliseconds, to the microsecond", async () => {
  const { service, log, lines, time } = serviceFor({}, 5000);
  handle(interrupt(service, () => time.uptime += 12.34567), get("/"), from("::1"));
  await log.flush(1000);
  assertEquals(JSON.parse(lines[0]!).duration_ms, 12.346);
});

// ---- Command line ----

/** Runs the command with these arguments and variables, and gives its exit code and what it wrote. */
async function runMain(args: string[], env: Record<string, string> | Error = {}, isBroken = false) {
  const written = { stdout: "", stderr: "" };
  const writer = (name: "stdout" | "stderr") => ({
    isTerminal: () => false,
    write(bytes: Uint8Array) {
      if (isBroken) return Promise.reject(new Deno.errors.BrokenPipe());
      written[name] += new TextDecoder().decode(bytes);
      return Promise.resolve(bytes.length);
    },
  });
  const get = (name: string) => {
    if (env instanceof Error) throw env;
    return env[name];
  };
  const end = main(args, { env: { get }, stdout: writer("stdout"), stderr: writer("stderr") });
  const code = await waitFor(end, "the end: it serves");
  return { code, ...written };
}

Deno.test("main() prints version and help in any environment, even if nobody reads", async () => {
  const version = `devops-info-service ${project.version}`;
  for (const env of [{}, { PORT: "bad" }, new Deno.errors.NotCapable()]) {
    assertEquals(await runMain(["--version"], env), {
      code: 0,
      stdout: `${version}\n`,
      stderr: "",
    });
    const { code, stdout, stderr } = await runMain(["--help"], env);
    assertEquals([code, stderr], [0, ""]);
    const lines = stdout.split("\n").map((line) => line.trim().replaceAll(/  +/g, "  "));
    assertEquals(lines[0], `${version}: DevOps course info service`);
    const sections = lines.filter((line) => /^[A-Z][a-z ]+:( |$)/.test(line));
    assertEquals(sections, [
      "Usage: devops-info-service [--health | --version | --help]",
      ...["Environment:", "Signals:", "Exit codes:"],
    ]);
    const readTerms = (name: string) => {
      const begin = lines.indexOf(name) + 1;
      return lines.slice(begin, lines.indexOf("", begin)).map((line) => line.split("  ")[0]);
    };
    assertEquals(readTerms(sections[0]!), ["no argument", "--health", "--version", "--help"]);
    assertEquals(readTerms("Signals:"), ["SIGTERM, SIGINT", "SIGUSR2"]);
    assertEquals(readTerms("Exit codes:"), ["0", "1", "2", "130, 143"]);
    assertEquals(
      readTerms("Environment:"),
      VALUES.flatMap(([name, allowed]) => [name, `${allowed} (default ${DEFAULTS[name]})`]),
    );
  }
  assertEquals((await runMain(["--version"], {}, true)).code, 0);
});

Deno.test("main() refuses any other argument, and names it on one line", async () => {
  for (
    const args of [["--nonsense"], ["serve"], ["--help", "--version"], ["--health", "x"], [""], [
      "\n",
    ]]
  ) {
    assertEquals(await runMain(args), {
      code: 2,
      stdout: "",
      stderr: "Usage: devops-info-service [--health | --version | --help], not " +
        `${JSON.stringify(args.join(" "))}\n`,
    });
  }
});

Deno.test("main() refuses Deno's bypassing variables, and names a missing permission", async () => {
  for (const args of [[], ["--health"]]) {
    for (const [name, value, ours] of BYPASSES) {
      const stderr = `${name}="${value}": not allowed, use ${ours} instead\n`;
      assertEquals(await runMain(args, { [name]: value }), { code: 2, stdout: "", stderr });
    }
    const refused = await runMain(args, new Deno.errors.NotCapable("the reason"));
    assertEquals(refused, { code: 2, stdout: "", stderr: "the reason\n" });
  }
});

// ---- The black box: routes ----

const JSON_TYPE = "application/json";
const HTML_TYPE = "text/html; charset=utf-8";

/** Path and host of requests, and their status. */
const ASKED = [["/", "x", 200], ["/health", "x", 200], [OTHER_PATH, "x", 404]] as const;

for (const form of CONTRACT_FORMS) {
  const test = bindTest(form);

  test("GET / says what it is and where it runs", async () => {
    const service = await share(form);
    const { status, headers, body } = await sendRaw(
      service.port,
      formatRequest("/?query=changes-nothing", { fields: "User-Agent: suite/1.0\r\n" }),
    );
    assertEquals(status, 200);
    assertEquals(headers.get("content-type"), JSON_TYPE);
    assertMatch(body, /}\n$/);
    const { endpoints, ...rest } = JSON.parse(body);
    assertEquals(
      Object.entries(rest).map(([key, value]) => [key, Object.keys(value as object)]),
      Object.entries(INFORMATION_KEYS),
    );
    assertEquals(rest.service.version, project.version);
    if (!form.isImage) assertEquals(rest.system.hostname, Deno.hostname());
    assertEquals(rest.system.platform_version, Deno.osRelease());
    assertEquals(
      rest.system.architecture,
      form.name.startsWith("arm64") ? "aarch64" : Deno.build.arch,
    );
    assertEquals(rest.system.cpu_count, navigator.hardwareConcurrency);
    const platforms: Record<string, string> = {
      linux: "Linux",
      darwin: "Darwin",
      windows: "Windows",
    };
    assertEquals(rest.system.platform, platforms[Deno.build.os]);
    assertMatch(rest.system.deno_version, /^\d+\.\d+\.\d+$/);
    assertMatch(rest.runtime.current_time, RFC_3339);
    assertAlmostEquals(Date.parse(rest.runtime.current_time), Date.now(), 60_000);
    assert(Number.isInteger(rest.runtime.uptime_seconds), "whole seconds");
    assertLess(rest.runtime.uptime_seconds, 60);
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

  test("uptime grows by the second, and both routes agree on it", async () => {
    const service = await share(form);
    const readHealth = async () => await (await fetch(`${service.url}/health`)).json();
    const first = await readHealth();
    const grows = ({ uptime_seconds }: typeof first) => uptime_seconds > first.uptime_seconds;
    const later = await waitUntil("the uptime to grow", readHealth, grows);
    const seconds = (Date.parse(later.timestamp) - Date.parse(first.timestamp)) / 1000;
    assertAlmostEquals(later.uptime_seconds - first.uptime_seconds, seconds, 1);
    const text = await (await fetch(`${service.url}/health?x`)).text();
    assertMatch(
      text,
      /^{"status":"healthy","timestamp":"\d{4}-\d\d-\d\dT[\d:.]+Z","uptime_seconds":\d+}\n$/,
    );
    const { runtime } = await (await fetch(service.url)).json();
    assertAlmostEquals(runtime.uptime_seconds, later.uptime_seconds, 10);
  });

  test("answers have the current time, and durations are in milliseconds", async () => {
    await using service = await start(form);
    const times = new Set<string>();
    const begun = performance.now();
    for (let n = 0; n < 20; n++) {
      const [path, pattern] = n % 2
        ? ["/", /"current_time":"(.*?)"/]
        : ["/health", /"timestamp":"(.*?)"/];
      times.add(
        (pattern as RegExp).exec(
          (await sendRaw(service.port, formatRequest(path as string))).body,
        )![1]!,
      );
      await sleep(2);
    }
    assertGreater(times.size, 10, "answers are kept for longer");
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    const durations = service.lines.flatMap(({ duration_ms }) =>
      duration_ms === undefined ? [] : duration_ms
    );
    const sum = (durations as number[]).reduce((sum, duration) => sum + duration, 0);
    assert(sum > 0.05 && sum < performance.now() - begun, `10 requests took ${durations} ms`);
  });

  test("every method and path gets its status, Allow, JSON and common headers", async () => {
    const service = await share(form);
    for (
      const [method, target, expected] of [
        ["GET", "/", 200],
        ["HEAD", "/", 200],
        ["GET", "/?a=/health", 200],
        ["GET", "/health?", 200],
        ["HEAD", "/health", 200],
        ["OPTIONS", "/", 204],
        ["OPTIONS", "/health", 204],
        ["OPTIONS", "*", 204],
        ["POST", "/", 405],
        ["PUT", "/health", 405],
        ["PATCH", "/health", 405],
        ["DELETE", "/", 405],
        ["TRACE", "/", 405],
        ["PROPFIND", "/", 405],
        ["get", "/", 405],
        ["GET", "/health/", 404],
        ["GET", "/Health", 404],
        ["GET", "//health", 404],
        ["GET", "/%2e%2e/health", 404],
        ["GET", "/%68ealth", 404],
        ["GET", "/x/../health", 404],
        ["GET", "/healthz", 404],
        ["HEAD", OTHER_PATH, 404],
        ["POST", OTHER_PATH, 404],
        ["OPTIONS", OTHER_PATH, 404],
        ["OPTIONS", "/x*", 404],
      ] as const
    ) {
      const about = `${method} ${target}`;
      const { status, headers, body } = await sendRaw(
        service.port,
        formatRequest(target, { method }),
      );
      assertEquals(status, expected, about);
      assertEquals(headers.get("cache-control"), "no-store", about);
      assertEquals(headers.get("x-content-type-options"), "nosniff", about);
      assertEquals(headers.get("connection"), null, about);
      assertEquals(headers.get("allow"), [204, 405].includes(status) ? ALLOW : null, about);
      if (status === 204 || method === "HEAD") assertEquals(body, "", about);
      else {
        assertEquals(headers.get("content-type"), JSON_TYPE, about);
        assertEquals(headers.get("content-length"), String(body.length), about);
        assertMatch(body, /}\n$/, about);
      }
      if (status === 404 && body !== "") {
        assertEquals(body, `{"error":"Not Found","message":"Endpoint does not exist"}\n`);
      }
      if (status === 405) {
        const { error, message, ...rest } = JSON.parse(body);
        assertEquals([error, typeof message, rest], ["Method Not Allowed", "string", {}], about);
      }
    }
  });

  test("HEAD gets the status and length of what GET gets, and no content, in every HTTP", async () => {
    const service = await share(form);
    for (const [target, host, expected] of [...ASKED, ["/", "a b", 400]] as const) {
      for (const accept of ["*/*", BROWSER_ACCEPT]) {
        for (const version of ["HTTP/1.0", "HTTP/1.1"]) {
          const parts = { version, host: `Host: ${host}\r\n`, fields: `Accept: ${accept}\r\n` };
          using connection = await connect(service.port);
          await connection.send(formatRequest(target, { ...parts, method: "HEAD" }));
          const head = await connection.receive(true);
          const got = await sendRaw(service.port, formatRequest(target, parts));
          const about = `${version} ${target} ${host} ${accept}`;
          assertEquals(head?.headers.get("content-length"), String(got.body.length), about);
          assertEquals([head?.status, got.status], [expected, expected], about);
          // no content comes: the connection closes, or the next answer follows at once
          if (version === "HTTP/1.1") {
            await connection.send(formatRequest("/", { version: "HTTP/1.0" }));
          }
          const rest = await connection.receiveAll();
          assertMatch(rest, version === "HTTP/1.1" ? /^HTTP\/1\.0 200 / : /^$/, about);
        }
      }
    }
    for (const [path, authority, expected] of ASKED) {
      for (const accept of ["*/*", BROWSER_ACCEPT]) {
        const parts = { path, authority, headers: { accept } };
        const head = await sendHttp2(service.port, { ...parts, method: "HEAD" });
        const got = await sendHttp2(service.port, parts);
        assertEquals([head.status, head.headers.get("content-length"), head.body], [
          expected,
          String(got.body.length),
          "",
        ]);
      }
    }
  });

  test("two pipelined requests get two answers, in order", async () => {
    const service = await share(form);
    using connection = await connect(service.port);
    await connection.send(formatRequest("/") + formatRequest("/health", { version: "HTTP/1.0" }));
    const answers = await connection.receiveAll();
    assertMatch(answers, /^HTTP\/1\.1 200 [^]*"endpoints"[^]*HTTP\/1\.0 200 [^]*"healthy"/);
  });

  test("HTTP/2 gets the same answers", async () => {
    const service = await share(form);
    for (
      const [method, path, expected] of [
        ["GET", "/", 200],
        ["GET", "/health", 200],
        ["GET", OTHER_PATH, 404],
        ...["POST", "PUT", "PATCH", "TRACE", "CONNECT", "BREW"].map((method) =>
          [method, "/", 405] as const
        ),
        ["DELETE", "/health", 405],
        ["OPTIONS", "/health", 204],
      ] as const
    ) {
      const { status, headers, body } = await sendHttp2(service.port, { method, path });
      assertEquals([status, body.endsWith("}\n")], [expected, expected !== 204], path);
      assertEquals(headers.get("allow"), [204, 405].includes(expected) ? ALLOW : null);
      assertEquals(headers.get("cache-control"), "no-store");
    }
  });

  test("an :authority of HTTP/2 reaches no route that was not asked for", async () => {
    const service = await share(form);
    for (const authority of [...BAD_HOSTS, "x/health"]) {
      for (
        const [path, other] of [["/", '"healthy"'], ["/health", '"endpoints"'], [
          "/x",
          '{"s',
        ]] as const
      ) {
        const received = await sendFrames(service.port, [
          [":method", "GET"],
          [":scheme", "http"],
          [":authority", authority],
          [":path", path],
        ]);
        assert(!received.includes(other), `${path} of ${authority}: ${JSON.stringify(received)}`);
      }
    }
    assertEquals((await probe(service.port)).status, 200);
  });

  test("a malformed Host gets 400 on every route; a valid one or none does not", async () => {
    const service = await share(form);
    for (const host of BAD_HOSTS) {
      for (const target of [...PATHS, OTHER_PATH]) {
        const request = formatRequest(target, { host: `Host: ${host}\r\n` });
        const { status, body } = await sendRaw(service.port, request);
        assertEquals([status, body !== "" && JSON.parse(body).error], [400, "Bad Request"], host);
      }
    }
    for (const host of GOOD_HOSTS) {
      const { status } = await sendRaw(
        service.port,
        formatRequest("/", { host: `Host: ${host}\r\n` }),
      );
      assertEquals(status, 200, host);
    }
    // the runtime does not say which version a request is of, and HTTP/1.0 needs no Host
    for (const version of ["HTTP/1.0", "HTTP/1.1"]) {
      const { status } = await sendRaw(
        service.port,
        formatRequest("/health", { version, host: "" }),
      );
      assertEquals(status, 200, version);
    }
  });

  test("no User-Agent shows as unknown", async () => {
    const service = await share(form);
    const { body } = await sendRaw(service.port, formatRequest("/"));
    assertEquals(JSON.parse(body).request.user_agent, "unknown");
  });

  test("TRUST_PROXY=N takes the Nth address from the right", async () => {
    const fields = "X-Forwarded-For: 198.51.100.9\r\nX-Forwarded-For: 203.0.113.7\r\n";
    for (
      const [TRUST_PROXY, expected] of [
        ["0", "127.0.0.1"],
        ["1", "203.0.113.7"],
        ["2", "198.51.100.9"],
        ["3", "127.0.0.1"],
      ] as const
    ) {
      await using service = await start(form, { TRUST_PROXY });
      const { body } = await sendRaw(service.port, formatRequest("/", { fields }));
      assertEquals(JSON.parse(body).request.client_ip, expected);
      await service.waitForOutput(new RegExp(`"msg":"request".*"client_ip":"${expected}"`));
    }
  }, findSlowness(form));

  test("HOST takes every allowed address; dual stack shows IPv4 as IPv4", async () => {
    for (
      const [HOST, ...hostnames] of [
        ["0.0.0.0", "127.0.0.1"],
        ["127.0.0.1", "127.0.0.1"],
        ...(HAS_IPV6 ? [["::", "127.0.0.1", "::1"], ["::1", "::1"]] : []),
      ]
    ) {
      await using service = await start(form, { HOST: HOST! });
      for (const hostname of hostnames) {
        const { body } = await sendRaw(service.port, formatRequest("/"), hostname);
        assertEquals(JSON.parse(body).request.client_ip, hostname);
      }
    }
    await using service = await start(form, { HOST: "localhost" });
    assertEquals((await probe(service.port, "localhost")).status, 200);
  }, findSlowness(form));

  // ---- Page or JSON ----

  test("GET / is a page for clients that prefer HTML, and JSON for all others", async () => {
    const service = await share(form);
    for (
      const [accept, type] of [
        [BROWSER_ACCEPT, HTML_TYPE],
        ["text/html", HTML_TYPE],
        ["text/*", HTML_TYPE],
        [`text/html, x/${"y".repeat(999 - 13)}`, HTML_TYPE],
        [`text/html, x/${"y".repeat(1000 - 13)}`, JSON_TYPE], // too long to count
        ["application/json;q=0.5, text/html", HTML_TYPE],
        ["*/*", JSON_TYPE],
        ["application/json", JSON_TYPE],
        ["text/html;q=0.5, application/json", JSON_TYPE],
        ["application/*, text/html;q=0.9", JSON_TYPE],
        ["text/html;q=0", JSON_TYPE],
        ["image/png", JSON_TYPE],
        ["nonsense", JSON_TYPE],
        ["", JSON_TYPE],
        [undefined, JSON_TYPE],
      ] as const
    ) {
      const fields = accept === undefined ? "" : `Accept: ${accept}\r\n`;
      const { status, headers, body } = await sendRaw(service.port, formatRequest("/", { fields }));
      assertEquals([status, headers.get("content-type")], [200, type], accept);
      assertMatch(headers.get("vary")!, /\baccept\b(?!-)/i);
      assertEquals(headers.get("cache-control"), "no-store");
      const head = await sendRaw(service.port, formatRequest("/", { method: "HEAD", fields }));
      assertEquals(head.headers.get("content-length"), String(body.length), "HEAD");
    }
    // health is JSON for everybody; what is nowhere is a page for a reader, and JSON for a program
    for (
      const [method, path, accept, status, type, vary] of [
        ["GET", "/health", BROWSER_ACCEPT, 200, JSON_TYPE, null],
        ["GET", OTHER_PATH, BROWSER_ACCEPT, 404, HTML_TYPE, "accept"],
        ["HEAD", OTHER_PATH, BROWSER_ACCEPT, 404, HTML_TYPE, "accept"],
        ["GET", OTHER_PATH, "*/*", 404, JSON_TYPE, "accept"],
        ["POST", OTHER_PATH, BROWSER_ACCEPT, 404, JSON_TYPE, "accept"],
        ["POST", "/", BROWSER_ACCEPT, 405, JSON_TYPE, null],
      ] as const
    ) {
      const parts = { method, fields: `Accept: ${accept}\r\n` };
      const { headers, ...rest } = await sendRaw(service.port, formatRequest(path, parts));
      const about = `${method} ${path} ${accept}`;
      assertEquals([rest.status, headers.get("content-type")], [status, type], about);
      // Deno 2.7 compresses, and says so
      const varies = headers.get("vary")?.replace(/(, )?accept-encoding(, )?/i, "") || null;
      assertEquals(varies, vary, about);
    }
  });

  // ---- Command line and start ----

  test("bad variables: a line each on standard error, exit 2, nothing listening", async () => {
    const port = findFreePort();
    const env = { PORT: String(port), LOG_LEVEL: "loud", DRAIN_SECONDS: "-1" };
    for (const args of [[], ["--health"]]) {
      await using run = await launch(form, env, args);
      assertEquals(await run.waitForCode(), 2);
      assertEquals(run.stdout, "");
      assertEquals(run.stderr.trimEnd().split("\n"), [
        `LOG_LEVEL="loud": allowed is debug, info, warn, error`,
        `DRAIN_SECONDS="-1": allowed is a whole number from 0 to 300`,
      ]);
    }
    assert(await isRefused(port), "nothing may listen");
  });

  test("empty variables count as unset", async () => {
    await using service = await start(form, { LOG_LEVEL: "", LOG_FORMAT: "", DRAIN_SECONDS: "" });
    assertEquals(service.lines[0]!.level, "info");
  });

  test("a port in use: one line, exit 1", async () => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const PORT = String(listener.addr.port);
    await using run = await launch(form, { HOST: "127.0.0.1", PORT });
    assertEquals(await run.waitForCode(), 1);
    assertEquals(run.stdout, "");
    assertMatch(run.stderr, new RegExp(`^cannot listen on 127.0.0.1 port ${PORT}: .*in use.*\n$`));
  });

  const isPort80Free = Deno.build.os !== "linux" ||
    Number(Deno.readTextFileSync("/proc/sys/net/ipv4/ip_unprivileged_port_start")) <= 80;
  test(
    "a port that the user may not bind: one line, exit 1",
    async () => {
      await using run = await launch(form, { HOST: "127.0.0.1", PORT: "80" });
      assertEquals(await run.waitForCode(), 1);
      assertMatch(run.stderr, /^cannot listen on 127.0.0.1 port 80: .*denied.*\n$/);
    },
    isPort80Free && "any user may bind port 80",
    !form.isImage && Deno.uid() === 0 && "root may bind every port",
  );

  test("--version, --help and any other argument: exit 0 and 2", async () => {
    for (
      const [args, code, stdout, stderr] of [
        [["--version"], 0, /^devops-info-service \S+\n$/, /^$/],
        [["--help"], 0, /^devops-info-service [^]+Usage: [^]+Exit codes:/, /^$/],
        [["--nonsense"], 2, /^$/, /^Usage: devops-info-service .*, not "--nonsense"\n$/],
        [["--health", "x"], 2, /^$/, /^Usage: devops-info-service .*, not "--health x"\n$/],
      ] as const
    ) {
      await using run = await launch(form, { PORT: "bad" }, args);
      assertEquals(await run.waitForCode(), code);
      assertMatch(run.stdout, stdout);
      assertMatch(run.stderr, stderr);
    }
  });

  test("--version exits 0 even if its output cannot be written", async () => {
    const full = wrapForm(form, ["sh", "-c", 'exec "$0" "$@" >/dev/full']);
    await using run = await launch(full, {}, ["--version"]);
    assertEquals([await run.waitForCode(), run.stderr], [0, ""]);
  }, form.isImage && "it is Docker's client that would write");

  test("a value that is not Unicode: one line, exit 2", async () => {
    const odd = wrapForm(form, ["sh", "-c", `PORT=$(printf '\\377') exec "$0" "$@"`]);
    await using run = await launch(odd);
    assertEquals(await run.waitForCode(), 2);
    const line = 'PORT="\ufffd": allowed is a whole number from 0 to 65535\n';
    assertEquals([run.stdout, run.stderr], ["", line]);
  }, form.isImage && "Docker takes no such value");

  test(
    "the runtime's variables that bypass ours: exit 2; compression changes nothing",
    async () => {
      const port = findFreePort();
      for (const args of [[], ["--health"]]) {
        const env = { DENO_SERVE_ADDRESS: `tcp:127.0.0.1:${port}`, DENO_TRUST_PROXY_HEADERS: "1" };
        await using run = await launch(form, { ...env, HOST: "127.0.0.1", PORT: "0" }, args);
        assertEquals([await run.waitForCode(), run.stdout], [2, ""]);
        assertEquals(run.stderr.trimEnd().split("\n"), [
          `DENO_SERVE_ADDRESS="tcp:127.0.0.1:${port}": not allowed, use HOST and PORT instead`,
          `DENO_TRUST_PROXY_HEADERS="1": not allowed, use TRUST_PROXY instead`,
        ]);
      }
      assert(await isRefused(port), "nothing may listen");
      const codings: (string | null)[] = [];
      for (
        const env of [{}, { DENO_SERVE_AUTOMATIC_COMPRESSION: "1" }] as Record<string, string>[]
      ) {
        await using service = await start(form, env);
        using connection = await connect(service.port);
        await connection.send(
          formatRequest("/", { version: "HTTP/1.0", fields: "Accept-Encoding: gzip\r\n" }),
        );
        const head = (await connection.receiveAll()).split("\r\n\r\n")[0]!;
        codings.push(/^content-encoding: (.*)$/im.exec(head)?.[1] ?? null);
      }
      assertEquals(codings[1], codings[0]);
      if (form === SOURCE) assertEquals(codings[0], null); // Deno 2.7 compresses for who accepts it
    },
    findSlowness(form),
  );

  // ---- Disk ----

  test(
    "it writes nothing to disk",
    async () => {
      const folder = makeTempPath("home");
      await Deno.mkdir(folder);
      await using service = await start(form, {
        TMPDIR: folder,
        HOME: folder,
        XDG_CACHE_HOME: folder,
      });
      await probe(service.port);
      service.kill("SIGTERM");
      assertEquals(await service.waitForCode(), 0);
      assertEquals([...Deno.readDirSync(folder)], []);
    },
    form.name !== "executable" &&
      (form.isImage ? "it runs read-only" : "a source run caches its source"),
  );
}
