/**
 * The contract of `main.ts`: configuration, answers and log lines as functions; then the black box, which
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
  assertNotMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { type Clock, type Config, handle, Logger, parseConfig, type Service } from "./main.ts";
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
  type Form,
  formatRequest,
  GOOD_HOSTS,
  HAS_IPV6,
  INFORMATION_KEYS,
  isRefused,
  lacks,
  launch,
  makeTempPath,
  OTHER_PATH,
  probe,
  readOutput,
  readSourceFlags,
  ROUTES,
  sendHttp2,
  sendRaw,
  start,
  test,
  waitUntil,
} from "./.ci/harness.ts";
import { SERVICE_FLAGS } from "./.deno-std/flags.ts";

// ---- Configuration, answers and log lines ----

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

// ---- The black box: routes ----

const RFC_3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;
const JSON_TYPE = "application/json; charset=utf-8";

for (const form of CONTRACT_FORMS) {
  const test = bindTest(form);

  test("GET / says what it is and where it runs", async () => {
    await using service = await start(form);
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
    assertEquals(rest.system.architecture, form.name.startsWith("arm64") ? "aarch64" : Deno.build.arch);
    assertEquals(rest.system.cpu_count, navigator.hardwareConcurrency);
    const platforms: Record<string, string> = { linux: "Linux", darwin: "Darwin", windows: "Windows" };
    assertEquals(rest.system.platform, platforms[Deno.build.os]);
    assertMatch(rest.system.deno_version, /^\d+\.\d+\.\d+$/);
    assertMatch(rest.runtime.current_time, RFC_3339);
    assertAlmostEquals(Date.parse(rest.runtime.current_time), Date.now(), 60_000);
    assert(Number.isInteger(rest.runtime.uptime_seconds), "whole seconds");
    assertLess(rest.runtime.uptime_seconds, 60);
    assertEquals(rest.request, { client_ip: "127.0.0.1", user_agent: "suite/1.0", method: "GET", path: "/" });
    assertEquals(endpoints, [
      { path: "/", method: "GET", description: "Service information" },
      { path: "/health", method: "GET", description: "Health check" },
    ]);
  });

  test("GET /health says that it is healthy", async () => {
    await using service = await start(form);
    const response = await fetch(`${service.url}/health?x`);
    assertEquals(response.status, 200);
    assertMatch(
      await response.text(),
      /^{"status":"healthy","timestamp":"\d{4}-\d\d-\d\dT[\d:.]+Z","uptime_seconds":\d+}\n$/,
    );
  });

  test("uptime grows by the second, and both routes agree on it", async () => {
    const begun = Date.now();
    await using service = await start(form);
    const readUptime = async () => (await (await fetch(`${service.url}/health`)).json()).uptime_seconds;
    await waitUntil("an uptime of 2 s", readUptime, (uptime) => uptime >= 2);
    assertGreater(Date.now() - begun, 1000);
    const { runtime } = await (await fetch(service.url)).json();
    assertGreaterOrEqual(runtime.uptime_seconds, 2);
    assertLess(runtime.uptime_seconds, 60);
  });

  test("every method and path gets its status, Allow, JSON and common headers", async () => {
    await using service = await start(form);
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
        ["GET", "/x/../health", 404],
        ["GET", "/healthz", 404],
        ["HEAD", OTHER_PATH, 404],
        ["POST", OTHER_PATH, 404],
        ["OPTIONS", OTHER_PATH, 404],
      ] as const
    ) {
      const about = `${method} ${target}`;
      const { status, headers, body } = await sendRaw(service.port, formatRequest(target, { method }));
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

  test("HEAD has the content-length of what GET would send, and no content", async () => {
    await using service = await start(form);
    for (const path of [...ROUTES, OTHER_PATH]) {
      using connection = await connect(service.port);
      await connection.send(formatRequest(path, { method: "HEAD" }) + formatRequest(path));
      const head = await connection.receive(true);
      const got = await connection.receive();
      assertEquals([head?.status, head?.headers.get("content-length")], [
        got?.status,
        String(got?.body.length),
      ]);
    }
  });

  test("two pipelined requests get two answers, in order", async () => {
    await using service = await start(form);
    using connection = await connect(service.port);
    await connection.send(formatRequest("/") + formatRequest("/health", { version: "HTTP/1.0" }));
    const answers = await connection.receiveAll();
    assertMatch(answers, /^HTTP\/1\.1 200 [^]*"endpoints"[^]*HTTP\/1\.0 200 [^]*"healthy"/);
  });

  test("HTTP/2 gets the same answers", async () => {
    await using service = await start(form);
    for (const [path, expected] of [["/", 200], ["/health", 200], [OTHER_PATH, 404]] as const) {
      const { status, body } = await sendHttp2(service.port, { path });
      assertEquals([status, body.endsWith("}\n")], [expected, true], path);
    }
  });

  test("a Host that is no host gets 400 on every route, a valid one or none does not", async () => {
    await using service = await start(form);
    for (const host of BAD_HOSTS) {
      for (const target of [...ROUTES, OTHER_PATH]) {
        const request = formatRequest(target, { host: `Host: ${host}\r\n` });
        const { status, body } = await sendRaw(service.port, request);
        assertEquals([status, body !== "" && JSON.parse(body).error], [400, "Bad Request"], host);
      }
    }
    for (const host of GOOD_HOSTS) {
      const { status } = await sendRaw(service.port, formatRequest("/", { host: `Host: ${host}\r\n` }));
      assertEquals(status, 200, host);
    }
    // the runtime does not say which version a request is of, and HTTP/1.0 needs no Host
    for (const version of ["HTTP/1.0", "HTTP/1.1"]) {
      const { status } = await sendRaw(service.port, formatRequest("/health", { version, host: "" }));
      assertEquals(status, 200, version);
    }
  });

  test("no User-Agent shows as unknown", async () => {
    await using service = await start(form);
    const { body } = await sendRaw(service.port, formatRequest("/"));
    assertEquals(JSON.parse(body).request.user_agent, "unknown");
  });

  test("TRUST_PROXY believes the address that the outermost trusted proxy saw", async () => {
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
      for (const hostname of hostnames) {
        const { body } = await sendRaw(service.port, formatRequest("/"), hostname);
        assertEquals(JSON.parse(body).request.client_ip, hostname);
      }
    }
    await using service = await start(form, { HOST: "localhost" });
    assertEquals((await probe(service.port, "localhost")).status, 200);
  });

  // ---- Page or JSON ----

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
      const fields = accept === undefined ? "" : `Accept: ${accept}\r\n`;
      const { status, headers, body } = await sendRaw(service.port, formatRequest("/", { fields }));
      assertEquals([status, headers.get("content-type")], [200, `${type}; charset=utf-8`], accept);
      assertMatch(headers.get("vary")!, /\baccept\b(?!-)/i);
      assertEquals(headers.get("cache-control"), "no-store");
      const head = await sendRaw(service.port, formatRequest("/", { method: "HEAD", fields }));
      assertEquals(head.headers.get("content-length"), String(body.length), "HEAD");
    }
    const headers = { accept: "text/html" };
    const response = await fetch(`${service.url}/health`, { headers });
    await response.body?.cancel();
    assertEquals(response.headers.get("content-type"), JSON_TYPE);
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
        `DRAIN_SECONDS="-1": allowed is 0–300`,
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

  test("--version and --help say what there is, whatever the environment", async () => {
    await using version = await launch(form, { PORT: "bad" }, ["--version"]);
    assertEquals(await version.waitForCode(), 0);
    assertEquals(version.stdout, `devops-info-service ${project.version}\n`);
    await using help = await launch(form, { PORT: "bad" }, ["--help"]);
    assertEquals(await help.waitForCode(), 0);
    for (const word of [...Object.keys(DEFAULTS), "--health", "Usage", "Exit codes", "143"]) {
      assertStringIncludes(help.stdout, word);
    }
    assertEquals(help.stderr, "");
  });

  test("any other argument: usage on standard error, exit 2", async () => {
    for (const args of [["--nonsense"], ["serve"], ["--help", "--version"], [""]]) {
      await using run = await launch(form, { PORT: "0" }, args);
      assertEquals(await run.waitForCode(), 2);
      assertEquals(run.stdout, "");
      assertMatch(run.stderr, /^Usage: devops-info-service .*, not ".*"\n$/);
      assertStringIncludes(run.stderr, JSON.stringify(args.join(" ")));
    }
  });

  // ---- Logs ----

  test("logs start, requests, drain and stop with their fields", async () => {
    await using service = await start(form, { LOG_LEVEL: "debug" });
    await sendRaw(service.port, formatRequest("/?secret", { fields: "User-Agent: a/1\r\n" }));
    await probe(service.port);
    await sendRaw(service.port, formatRequest(OTHER_PATH));
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    assertEquals(
      service.lines.map(({ time, duration_ms, ...rest }) => {
        assertMatch(String(time), RFC_3339);
        if (rest.msg === "request") assertGreaterOrEqual(duration_ms as number, 0);
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
          ...{ level: "info", msg: "request", method: "GET", path: OTHER_PATH, status: 404 },
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
    await probe(service.port);
    await sendRaw(service.port, formatRequest(OTHER_PATH));
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    assertEquals(service.lines.map(({ path }) => path).filter(Boolean), [OTHER_PATH]);

    const port = findFreePort();
    await using quiet = await launch(form, { HOST: "127.0.0.1", PORT: String(port), LOG_LEVEL: "warn" });
    await waitUntil("the port to open", async () => !await isRefused(port));
    await sendRaw(port, formatRequest(OTHER_PATH));
    quiet.kill("SIGTERM");
    assertEquals([await quiet.waitForCode(), quiet.stdout], [0, ""]);
  });

  test("LOG_FORMAT=text is the same for eyes; nothing a client sends forges a line", async () => {
    for (const LOG_FORMAT of ["text", "json"]) {
      await using service = await start(form, { LOG_FORMAT });
      const forged = `x" level=error\x85{"level":"error"}\x9b2J`;
      await sendRaw(service.port, formatRequest("/a%0ab%1b", { fields: `User-Agent: ${forged}\r\n` }));
      service.kill("SIGTERM");
      assertEquals(await service.waitForCode(), 0);
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
    using connection = await connect(service.port);
    await connection.send(formatRequest("/").repeat(count));
    for (let n = 0; n < count; n++) assertEquals((await connection.receive())?.status, 200);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    assertEquals(service.lines.filter(({ msg }) => msg === "request").length, count);
    assertEquals(service.lines.at(-1)!.msg, "stopped");
  });

  test(
    "on a terminal it logs text",
    async () => {
      const terminal: Form = {
        ...form,
        command: async (env, container, limits) => {
          const command = await form.command(env, container, limits);
          return ["script", "--quiet", "--command", command.join(" "), "/dev/null"];
        },
      };
      await using service = await start(terminal);
      assertMatch(service.stdout, /^\S+Z INFO {2}listening address=127.0.0.1 port=\d+ version=/);
    },
    form.isImage && "needs a terminal inside of the container",
    lacks("script"),
  );

  test("it writes nothing to disk", async () => {
    const folder = makeTempPath("home");
    await Deno.mkdir(folder);
    await using service = await start(form, { TMPDIR: folder, HOME: folder, XDG_CACHE_HOME: folder });
    await probe(service.port);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    assertEquals([...Deno.readDirSync(folder)], []);
  }, form.name !== "executable" && (form.isImage ? "it runs read-only" : "a source run caches its source"));
}

// ---- Permissions ----

test("the service may listen, probe, read its variables and the machine, nothing else", async () => {
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
  const program = `data:text/javascript,${encodeURIComponent(attempts)}`;
  const output = await readOutput([Deno.execPath(), "run", "--quiet", ...await readSourceFlags(), program]);
  assertEquals(output.split("\n"), [
    ...["net", "fetch", "env", "sys", "read", "write", "run", "ffi"].map((name) => `${name} NotCapable`),
    ...["HOST", "hostname", "osRelease"].map((name) => `${name} allowed`),
  ]);
});

test("dev and start run with the flags that the executable is compiled with", async () => {
  const flags = await readSourceFlags();
  for (const flag of SERVICE_FLAGS) assert(flags.includes(flag), flag);
  for (const task of ["dev", "start"] as const) {
    assertMatch(project.tasks[task].command, / \$\(deno task -q flags\) /);
    assertNotMatch(project.tasks[task].command, /--allow|--deny|-A|-P/);
  }
});

test("the permitted variables are the service's and the two it refuses, the permitted hosts those of HOST", () => {
  const values = (flag: string) =>
    SERVICE_FLAGS.find((text) => text.startsWith(`${flag}=`))!.slice(flag.length + 1).split(",");
  assertEquals(values("--allow-env"), [
    ...Object.keys(DEFAULTS),
    ...["DENO_SERVE_ADDRESS", "DENO_TRUST_PROXY_HEADERS"],
  ]);
  const hosts = VALUES[0]![1].map((host) => host.includes(":") ? `[${host}]` : host);
  assertEquals(values("--allow-net"), hosts);
});
