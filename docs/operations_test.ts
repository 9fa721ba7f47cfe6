/** The proof of `operations.md`, in the order of its sections. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import project from "../deno.json" with { type: "json" };
import { main } from "../main.ts";
import {
  type Form,
  FORMS,
  makeImageForm,
  makeProcessForm,
  SOURCE,
  wrapForm,
} from "../.test/forms.ts";
import { lacks, makeTempPath, readOutput, readText } from "../.test/programs.ts";
import { connect, findFreePort, formatRequest, HAS_IPV6, isRefused } from "../.test/requests.ts";
import { probe, sendRaw } from "../.test/requests.ts";
import { launch, type Run, type RunningService, SIGNAL_PAUSE, spec, start } from "../.test/run.ts";
import { sleep, waitUntil } from "../.test/waiting.ts";

const FORCED = "ended at once by a second signal";

function readMessages(run: Run) {
  return run.lines.map(({ msg }) => msg);
}

/** The line of its drain and its last one, and the milliseconds between them. */
function readEnd(run: Run) {
  const [draining, end] = [run.lines.find(({ msg }) => msg === "draining"), run.lines.at(-1)];
  const [begun, ended] = [draining, end].map((line) => Date.parse(`${line!.time}`));
  return { draining, end, milliseconds: ended! - begun! };
}

// ---- Logs ----

/** Tries to end its field and its line, and to steer the terminal. */
const FORGED_AGENT = `x" level=error\x85{"level":"error"}\x9b2J`;

/** The form on a terminal whose keys come from a file; `output` may send its output elsewhere. */
function putOnTerminal(form: Form, output = "", keys = "/dev/null"): Form {
  const script = `exec script --quiet --return --command "$0" /dev/null <>${keys}`;
  return wrapForm(form, (command) => ["sh", "-c", script, `${command.join(" ")} ${output}`]);
}

for (const form of FORMS) {
  Deno.test(spec(`${form.name}: it logs start, requests, drain and stop with fields`, async () => {
    await using service = await start(form, { LOG_LEVEL: "Debug", SHUTDOWN_SECONDS: "0" });
    const { port } = service;
    const ask = (target: string, fields: string) =>
      sendRaw(port, formatRequest(target, { fields: `${fields}\r\n` }));
    await ask("/?secret", "User-Agent: a/1\r\nX-Forwarded-For: 203.0.113.7:1, ::1");
    await ask("/nowhere", `User-Agent: ${FORGED_AGENT}`);
    const long = "b".repeat(8000);
    await ask("/".padEnd(8000, "a"), `User-Agent: ${long}\r\nX-Forwarded-For: a, ${long}`);
    await probe(port);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    const request = { level: "info", msg: "request", method: "GET", client_ip: "127.0.0.1" };
    const forwarded_for = "203.0.113.7:1, ::1";
    const [path, user_agent] = ["/".padEnd(1000, "a"), "b".repeat(1000)];
    assertEquals(
      service.lines.map(({ time, duration_ms, ...rest }) => {
        assertMatch(String(time), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
        assertEquals(Number(duration_ms) >= 0, rest.msg === "request");
        return rest;
      }),
      [
        { level: "info", msg: "listening", address: "127.0.0.1", port, version: project.version },
        { ...request, path: "/", status: 200, user_agent: "a/1", forwarded_for },
        { ...request, path: "/nowhere", status: 404, user_agent: FORGED_AGENT },
        { ...request, path, status: 404, user_agent, forwarded_for: user_agent },
        { ...request, level: "debug", path: "/health", status: 200, user_agent: "unknown" },
        { level: "info", msg: "draining", signal: "SIGTERM", seconds: 0 },
        { level: "info", msg: "stopped" },
      ],
    );
    assertMatch(service.stdout, /^[\n -~]+$/, "control characters are escaped");
    assertEquals(service.stderr, "");
  }));

  Deno.test(spec(`${form.name}: text has these fields, no probe, and all to the end`, async () => {
    await using service = await start(form, { LOG_FORMAT: "TEXT" });
    await probe(service.port);
    const fields = `User-Agent: ${FORGED_AGENT}\r\n`;
    await sendRaw(service.port, formatRequest("/a%0ab%1b", { fields }));
    using connection = await connect(service.port);
    await connection.send(formatRequest("/").repeat(300));
    for (let n = 0; n < 300; n++) assertEquals((await connection.receive())?.status, 200);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    const [, request, ...others] = service.stdout.trimEnd().split("\n");
    const [head, agent] = request!.split(" user_agent=");
    assertMatch(head!, /^\S+Z INFO {2}request method=GET path="?\/a%0ab%1b"? status=404 /);
    assertMatch(head!, / duration_ms=[\d.]+ client_ip=127\.0\.0\.1$/);
    assertEquals(agent, String.raw`"x\" level=error\u0085{\"level\":\"error\"}\u009b2J"`);
    assertEquals(others.filter((line) => line.includes(" path=/ ")).length, 300);
    assertEquals(others.length, 302, "no probe");
    assertMatch(service.stdout, /\n\S+Z INFO {2}draining .*\n\S+Z INFO {2}stopped\n$/);
  }));

  const reason = form.isImage ? "needs a terminal inside the container" : lacks("script");
  Deno.test(spec(`${form.name}: text on a terminal, JSON where only stderr is one`, async () => {
    await using text = await start(putOnTerminal(form));
    // beside another Deno, Deno may first warn of its cache
    assertMatch(text.stdout, /^\S+Z INFO {2}listening address=127.0.0.1 port=\d+ version=/m);
    await using json = await start(putOnTerminal(form, "| cat"));
    assertMatch(json.stdout, /^{"time":.*"listening"/m);
  }, { unless: reason }));
}

// ---- Probes ----

/** Runs `--health`, and gives its exit code and what it prints. */
async function askHealth(form: Form, HOST: string, port: number, otel = {}): Promise<string> {
  // a proxy that the environment names is not for a service on the same machine
  const env = { HOST, PORT: String(port), HTTP_PROXY: "http://127.0.0.1:1", ...otel };
  await using run = await launch(form, env, ["--health"]);
  return `${await run.waitForCode()} ${run.stdout}${run.stderr}`;
}

for (const form of FORMS) {
  Deno.test(spec(`${form.name}: --health asks by HOST, exits 0 on 200, 1 on others`, async () => {
    const hosts = HAS_IPV6 ? ["::", "0.0.0.0", "::1"] : ["0.0.0.0"];
    const HOST = hosts[0]!;
    await using service = await start(form, { HOST, LOG_LEVEL: "debug", DRAIN_SECONDS: "60" });
    await Promise.all(hosts.map(async (host) => {
      const seen = await askHealth(form, host, service.port);
      assertMatch(seen, /^0 200 {"status":"healthy".*}\n$/);
    }));
    service.kill("SIGTERM");
    await service.waitForOutput(/draining/);
    const failures = [
      { port: service.port, line: /^1 127\.0\.0\.1 port \d+: 503 {"status":"draining".*}\n$/ },
      { port: findFreePort(), line: /^1 127\.0\.0\.1 port \d+: .*refused.*\n$/ },
      { port: 0, line: /^1 .*: PORT=0 picks a free port, which --health cannot know\n$/ },
    ];
    await Promise.all(failures.map(async ({ port, line }) => {
      assertMatch(await askHealth(form, HOST, port), line);
    }));
    await sleep(SIGNAL_PAUSE);
    service.kill("SIGINT");
    assertEquals(await service.waitForCode(), 130);
    const asked = service.lines.filter(({ msg }) => msg === "request")
      .map(({ level, client_ip, user_agent }) => `${level} ${client_ip} ${user_agent}`);
    const agent = `${project.name}/${project.version}`;
    const expected = hosts.map((host) => `debug ${host === "::1" ? host : "127.0.0.1"} ${agent}`);
    assertEquals(asked.toSorted(), [...expected, `warn 127.0.0.1 ${agent}`].toSorted());
  }));
}

/** Runs `--health` as a function; a server sends it `parts`, then closes, goes on, or is silent. */
async function askServer(parts: readonly string[], then: string): Promise<string> {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  let seen = "";
  const write = (bytes: Uint8Array) => {
    seen += new TextDecoder().decode(bytes);
    return Promise.resolve(bytes.length);
  };
  const stdout = { write, isTerminal: () => false };
  const env = new Map([["PORT", String(listener.addr.port)]]);
  const asking = main(["--health"], { env, stdout, stderr: stdout });
  using connection = await listener.accept();
  const send = (text: string) => connection.write(new TextEncoder().encode(text)).catch(() => {});
  await connection.read(new Uint8Array(1024)); // to close with the request unread would reset
  for (const part of parts) await send(part).then(() => sleep(20));
  if (then === "close") await connection.closeWrite();
  while (then === "more" && !seen) await Promise.race([send("x".repeat(65_536)), asking]);
  return `${await asking} ${seen}`;
}

const OK = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
const ANSWERS = [
  { parts: [`${OK}abc`], then: "close", seen: /^0 200 abc\n$/ },
  { parts: ["HTTP/1.0 200 OK\r\n\r\n"], then: "close", seen: /^0 200\n$/ },
  {
    parts: ["HTTP/1", ".1 2", "00 OK\r\nX: y\r\n\r", "\nab"],
    then: "close",
    seen: /^0 200( ab)?\n$/,
  },
  { parts: ["HTTP/1.1 204 No Content\r\n\r\n"], then: "close", seen: /^1 .*: 204\n$/ },
  { parts: ["HTTP/1.1 500 200\r\n\r\n200"], then: "close", seen: /^1 .*: 500 200\n$/ },
  { parts: ["HTTP/1.1 2000 OK\r\n\r\n"], then: "close", seen: /^1 .*: not HTTP: / },
  {
    parts: ["SSH-2.0\x1b[2J\r\n\r\nmore\r\n"],
    then: "close",
    seen: /: not HTTP: SSH-2\.0 \[2J more\n$/,
  },
  { parts: [], then: "close", seen: /^1 .*: not HTTP:\n$/ },
  { parts: [OK], then: "more", seen: /^0 200( x{1,196})?\n$/ },
  { parts: [], then: "more", seen: /^1 .*: not HTTP: x{1,190}\n$/ },
  { parts: ["HTTP/1.1 200 OK\r\n"], then: "silence", seen: /: no answer within 2 seconds\n$/ },
];

Deno.test(spec("--health goes by the status alone, and soon, whatever answers", async (context) => {
  const asked = await Promise.all(ANSWERS.map(({ parts, then }) => askServer(parts, then)));
  for (const [n, { parts, then, seen }] of ANSWERS.entries()) {
    await context.step(`${JSON.stringify(parts)}, ${then}`, () => assertMatch(asked[n]!, seen));
  }
}));

// ---- Drain ----

/** Two clients that a stop waits for: Deno 2.9 for half a body, and Deno 2.7 for half a head. */
async function holdRequests({ port }: RunningService) {
  const [head, body] = [await connect(port), await connect(port)];
  await head.send("GET / HTTP/1.1\r\nHost: x\r\n");
  const fields = "Content-Length: 5\r\n";
  await body.send(formatRequest("/", { method: "POST", fields, body: "he" }));
  assertEquals((await body.receive())?.status, 405);
  const finish = async () => {
    head.close(); // Deno 2.7 no longer answers it
    await body.send("llo").catch(() => {}); // which Deno 2.7 has closed
  };
  return { finish, [Symbol.dispose]: () => [head, body].forEach((client) => client.close()) };
}

const CUT_OFF = "stopped before all requests were finished";
/** How stops end: by code and last message. Only SIGHUP is not for all forms. */
const STOPS = [
  { signal: "SIGTERM", env: { DRAIN_SECONDS: "1" }, code: 0, last: "stopped" },
  { signal: "SIGINT", env: {}, code: 0, last: "stopped" },
  { signal: "SIGHUP", env: {}, code: 0, last: "stopped" },
  { signal: "SIGTERM", env: { SHUTDOWN_SECONDS: "1" }, code: 1, last: CUT_OFF },
  { signal: "SIGINT", env: {}, code: 130, last: FORCED },
  { signal: "SIGHUP", env: {}, code: 129, last: FORCED },
] as const;

for (const form of FORMS) {
  Deno.test(spec(`${form.name}: while draining it answers, and asks to close`, async () => {
    await using service = await start(form, { DRAIN_SECONDS: "60" });
    service.kill("SIGTERM");
    await service.waitForOutput(/"msg":"draining"/);
    service.kill("SIGUSR2"); // a drill does not end a drain
    for (const fields of ["", "Accept: text/html\r\n"]) {
      const { status, headers } = await sendRaw(service.port, formatRequest("/", { fields }));
      assertEquals([status, headers.get("connection")], [200, "close"]);
    }
    await sleep(SIGNAL_PAUSE);
    const { status, body } = await probe(service.port);
    assertEquals([status, JSON.parse(body).status], [503, "draining"]);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 143);
    const messages = ["listening", "draining", "request", "request", "request", FORCED];
    assertEquals(readMessages(service), messages);
  }));

  Deno.test(spec(`${form.name}: it closes the port; requests finish or are cut off`, async () => {
    // a watcher would outlive a source run that heard of a hang-up
    const stops = STOPS.filter(({ signal }) => form !== SOURCE || signal !== "SIGHUP");
    await Promise.all(stops.map(async ({ signal, env, code, last }) => {
      await using service = await start(form, { SHUTDOWN_SECONDS: "60", ...env });
      using idle = await connect(service.port);
      await idle.send(formatRequest("/health"));
      assertEquals((await idle.receive())?.status, 200);
      using running = await holdRequests(service);
      service.kill(signal);
      await waitUntil("the port to close", () => isRefused(service.port));
      assertEquals(await idle.receiveAll(), "");
      await sleep(SIGNAL_PAUSE);
      assert(code === 1 || !service.stdout.includes(last), "it does not wait");
      if (code === 0) await running.finish();
      if (last === FORCED) service.kill(signal);
      assertEquals(await service.waitForCode(), code, last);
      const { draining, end, milliseconds } = readEnd(service);
      assertEquals([draining!.signal, end!.msg], [signal, last]);
      assertEquals(end!.level, code === 0 ? "info" : "warn");
      const least = Object.values(env).includes("1") ? 990 : 0;
      assert(milliseconds >= least, `${last} after ${milliseconds} ms`);
    }));
  }));
}

type Presses = (Deno.Signal | number)[];

/** Sends signals, with pauses in milliseconds, until the process has ended. */
async function press(run: Run, presses: Presses) {
  const pid = await run.readPid(); // Docker's client would give up at the third signal
  for (const next of presses) {
    try {
      if (typeof next === "number") await sleep(next);
      else Deno.kill(pid, next);
    } catch {
      return;
    }
  }
}

for (const form of FORMS) {
  const reason = form.isImage && Deno.uid() !== 0 && "only root may signal another user's process";

  Deno.test(spec(`${form.name}: a second signal ends it, but not within 100 ms`, async () => {
    const held = Array<Presses>(30).fill(["SIGINT", 30]).flat();
    const ways: Presses[] = [
      ["SIGTERM", "SIGINT", SIGNAL_PAUSE, "SIGINT"],
      ["SIGINT", SIGNAL_PAUSE, "SIGTERM"],
      held,
    ];
    await Promise.all(ways.map(async (presses) => {
      await using service = await start(form, { DRAIN_SECONDS: "60" });
      await press(service, presses);
      const code = await service.waitForCode();
      assertEquals(readMessages(service), ["listening", "draining", FORCED], `${presses}`);
      const { end, milliseconds } = readEnd(service);
      assertEquals(end!.signal, { 130: "SIGINT", 143: "SIGTERM" }[code]);
      assert(milliseconds >= 99, `after ${milliseconds} ms`);
    }));
  }, { unless: reason }));
}

/** What comes of Ctrl+C: `dev` gives a drain half a second, and its watcher ends with 0. */
const TASKS = [{ task: "start", isForced: true, code: 130 }, {
  task: "dev",
  isForced: false,
  code: 0,
}];

for (const { task, isForced, code } of TASKS) {
  const outcome = isForced ? "once more ends it" : "soon ends";
  Deno.test(spec(`source: Ctrl+C in deno task ${task} drains, and ${outcome}`, async () => {
    const keys = makeTempPath("keys");
    await readOutput(["mkfifo", keys]);
    const press = () => Deno.writeTextFile(keys, "\x03");
    // `exec`, since `script` runs a shell, and one that stays would get the keys too
    const form = makeProcessForm(task, () => ["exec", Deno.execPath(), "task", task]);
    await using run = await start(putOnTerminal(form, "", keys), { DRAIN_SECONDS: "60" });
    await press(); // and two signals come, in `dev` three
    await run.waitForOutput(/draining signal=SIGINT seconds=60\r\n/);
    if (isForced) await sleep(SIGNAL_PAUSE).then(press);
    assertEquals(await run.waitForCode(), code);
    const end = isForced ? /draining .*\r\n\S+Z WARN .*signal=SIGINT\r\n$/ : /draining .*\r\n$/;
    assertMatch(run.stdout, end);
  }, { unless: lacks("script") }));
}

// ---- Drill ----

for (const form of FORMS) {
  Deno.test(spec(`${form.name}: SIGUSR2 switches /health, and nothing else`, async () => {
    await using service = await start(form);
    for (const name of ["unhealthy", "healthy", "unhealthy"]) {
      service.kill("SIGUSR2");
      const look = () => probe(service.port);
      const { status } = await waitUntil(name, look, ({ body }) => body.includes(`"${name}"`));
      assertEquals(status, name === "healthy" ? 200 : 503);
      const { status: other, headers } = await sendRaw(service.port, formatRequest("/"));
      assertEquals([other, headers.get("connection")], [200, null], "it serves on");
    }
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    const switches = service.lines.filter(({ msg }) => msg === "health switched by hand");
    const seen = switches.map(({ level, status }) => `${level} ${status}`);
    assertEquals(seen, ["warn unhealthy", "warn healthy", "warn unhealthy"]);
    const failures = service.lines.filter(({ status }) => status === 503);
    assert(failures.length > 1 && failures.every(({ level }) => level === "warn"));
  }));
}

// ---- Telemetry ----

const OTEL_IMAGE = Deno.env.get("OTEL_IMAGE");
const TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const OTEL_FORMS = [SOURCE, ...OTEL_IMAGE ? [makeImageForm("image", OTEL_IMAGE)] : []];
const EXPORTS = [
  ...OTEL_FORMS.map((form) => ({ form, isExporter: true })),
  ...FORMS.map((form) => ({ form, isExporter: false })),
];

for (const { form, isExporter } of EXPORTS) {
  const what = isExporter ? "spans and metrics alone" : "nothing by itself";
  Deno.test(spec(`${form.name}: it exports ${what}`, async () => {
    const received: Record<string, string> = {};
    const options = { hostname: "127.0.0.1", port: 0, onListen() {} };
    await using server = Deno.serve(options, async (request) => {
      received[new URL(request.url).pathname] = JSON.stringify(await request.json());
      return Response.json({});
    });
    await using service = await start(form, {
      // for an executable it was decided when it was compiled
      ...isExporter || form !== SOURCE ? { OTEL_DENO: "true" } : {},
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${server.addr.port}`,
      OTEL_EXPORTER_OTLP_PROTOCOL: "http/json",
    });
    const fields = `traceparent: ${TRACEPARENT}\r\n`;
    assertEquals((await sendRaw(service.port, formatRequest("/", { fields }))).status, 200);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    assertEquals(readMessages(service), ["listening", "request", "draining", "stopped"]);
    const { "/v1/traces": traces, "/v1/metrics": metrics, ...others } = received;
    assertEquals([others, Boolean(traces), Boolean(metrics)], [{}, isExporter, isExporter]);
    if (!isExporter) return;
    assertMatch(metrics!, /"http.server.request.duration"/);
    const [, trace, parent] = TRACEPARENT.split("-");
    const span = `"traceId":"${trace}",[^{]*"parentSpanId":"${parent}",[^{]*"kind":2,`;
    assertMatch(traces!, new RegExp(span));
  }));
}

Deno.test(
  spec("source: a silent collector holds up neither probe nor stop, nor a 400", async () => {
    using silent = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const [, timeout] = /OTEL_EXPORTER_OTLP_TIMEOUT=(\d+)/.exec(readText("Dockerfile"))!;
    const otel = {
      OTEL_DENO: "true",
      OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${silent.addr.port}`,
      OTEL_EXPORTER_OTLP_TIMEOUT: timeout!,
    };
    await using service = await start(SOURCE, otel);
    const begun = Date.now();
    assertMatch(await askHealth(SOURCE, "127.0.0.1", service.port, otel), /^0 /);
    // with telemetry, Deno itself parses the URL first
    const { status, body } = await sendRaw(
      service.port,
      formatRequest("/", { host: "Host: a b\r\n" }),
    );
    assertMatch(`${status} ${body} ${service.stderr}`, /^400 \{.*"Host is not valid"\}\n $/);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    assert(Date.now() - begun < 10_000, "without a limit each waits ten seconds");
  }),
);
