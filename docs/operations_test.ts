/** The proof of `operations.md`, in the order of its sections. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import project from "../deno.json" with { type: "json" };
import { main } from "../main.ts";
import {
  CONTRACT_FORMS,
  type Form,
  FORMS,
  makeImageForm,
  makeProcessForm,
  SOURCE,
  wrapForm,
} from "../.test/forms.ts";
import { lacks, makeTempPath, readOutput, readText } from "../.test/programs.ts";
import {
  connect,
  findFreePort,
  formatFrame,
  formatHeaders,
  formatRequest,
  HAS_IPV6,
  HTTP2_PREFACE,
  isRefused,
  probe,
  sendRaw,
} from "../.test/requests.ts";
import { launch, type Run, type RunningService, SIGNAL_PAUSE, spec, start } from "../.test/run.ts";
import { sleep, waitUntil } from "../.test/waiting.ts";

const DOCUMENT = readText("docs/operations.md");
const FORCED = "ended at once by a second signal";

function readMessages(run: Run) {
  return run.lines.map(({ msg }) => msg);
}

/** The last two log lines, and the milliseconds between them. */
function readEnd(run: Run) {
  const [draining, end] = run.lines.slice(-2);
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
    await using service = await start(form, { LOG_LEVEL: "debug", SHUTDOWN_SECONDS: "0" });
    const { port } = service;
    const ask = (target: string, agent: string) =>
      sendRaw(port, formatRequest(target, { fields: `User-Agent: ${agent}\r\n` }));
    await ask("/?secret", "a/1");
    await ask("/nowhere", FORGED_AGENT);
    await ask("/".padEnd(2000, "a"), "b".repeat(2000));
    await probe(port);
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    const request = { level: "info", msg: "request", method: "GET", client_ip: "127.0.0.1" };
    const cut = { path: "/".padEnd(1000, "a"), user_agent: "b".repeat(1000) };
    assertEquals(
      service.lines.map(({ time, duration_ms, ...rest }) => {
        assertMatch(String(time), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
        assertEquals(Number(duration_ms) >= 0, rest.msg === "request");
        return rest;
      }),
      [
        { level: "info", msg: "listening", address: "127.0.0.1", port, version: project.version },
        { ...request, path: "/", status: 200, user_agent: "a/1" },
        { ...request, path: "/nowhere", status: 404, user_agent: FORGED_AGENT },
        { ...request, ...cut, status: 404 },
        { ...request, level: "debug", path: "/health", status: 200, user_agent: "unknown" },
        { level: "info", msg: "draining", signal: "SIGTERM", seconds: 0 },
        { level: "info", msg: "stopped" },
      ],
    );
    assertMatch(service.stdout, /^[\n -~]+$/, "control characters are escaped");
    assertEquals(service.stderr, "");
  }));

  Deno.test(spec(`${form.name}: text has these fields, no probe, and all to the end`, async () => {
    await using service = await start(form, { LOG_FORMAT: "text" });
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

  const reasons = [form.isImage && "needs a terminal inside the container", lacks("script")];
  Deno.test(spec(`${form.name}: text on a terminal, JSON where only stderr is one`, async () => {
    await using text = await start(putOnTerminal(form));
    // beside another Deno, Deno may first warn of its cache
    assertMatch(text.stdout, /^\S+Z INFO {2}listening address=127.0.0.1 port=\d+ version=/m);
    await using json = await start(putOnTerminal(form, "| cat"));
    assertMatch(json.stdout, /^{"time":.*"listening"/m);
  }, ...reasons));
}

// ---- Probes ----

/** Runs `--health`, and gives its exit code and what it prints. */
async function askHealth(form: Form, HOST: string, port: number, otel = {}): Promise<string> {
  // a proxy that the environment names is not for a service on the same machine
  const env = { HOST, PORT: String(port), HTTP_PROXY: "http://127.0.0.1:1", ...otel };
  await using run = await launch(form, env, ["--health"]);
  return `${await run.waitForCode()} ${run.stdout}${run.stderr}`;
}

for (const form of CONTRACT_FORMS) {
  Deno.test(spec(`${form.name}: --health asks by HOST, exits 0 on 200, 1 on others`, async () => {
    const hosts = HAS_IPV6 ? ["::", "0.0.0.0", "::1"] : ["0.0.0.0"];
    const HOST = hosts[0]!;
    await using service = await start(form, { HOST, LOG_LEVEL: "debug", DRAIN_SECONDS: "300" });
    await Promise.all(hosts.map(async (host) => {
      const seen = await askHealth(form, host, service.port);
      assertMatch(seen, /^0 200 {"status":"healthy".*}\n$/);
    }));
    service.kill("SIGTERM");
    await service.waitForOutput(/draining/);
    const failures: [port: number, line: RegExp][] = [
      [service.port, /^1 127\.0\.0\.1 port \d+: 503 {"status":"draining".*}\n$/],
      [findFreePort(), /^1 127\.0\.0\.1 port \d+: .*refused.*\n$/],
      [0, /^1 .*: PORT=0 picks a free port, which --health cannot know\n$/],
    ];
    await Promise.all(failures.map(async ([port, line]) => {
      assertMatch(await askHealth(form, HOST, port), line);
    }));
    await sleep(SIGNAL_PAUSE);
    service.kill("SIGINT");
    assertEquals(await service.waitForCode(), 130);
    const asked = service.lines.filter(({ msg }) => msg === "request")
      .map(({ level, client_ip, user_agent }) => `${level} ${client_ip} ${user_agent}`);
    const agent = `${project.name}/${project.version}`;
    const expected = hosts.map((host) => `debug ${host === "::1" ? host : "127.0.0.1"} ${agent}`);
    assertEquals(asked.toSorted(), [...expected, `error 127.0.0.1 ${agent}`].toSorted());
  }, form.isEmulated && "emulated, a probe may take longer than the two seconds it has"));
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
const ANSWERS: [parts: string[], then: "close" | "more" | "silence", seen: RegExp][] = [
  [[`${OK}abc`], "close", /^0 200 abc\n$/],
  [["HTTP/1.0 200 OK\r\n\r\n"], "close", /^0 200\n$/],
  [["HTTP/1", ".1 2", "00 OK\r\nX: ", "y\r\n\r", "\nab", "c"], "close", /^0 200( abc?)?\n$/],
  [["HTTP/1.1 204 No Content\r\n\r\n"], "close", /^1 .*: 204\n$/],
  [["HTTP/1.1 500 200\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"], "close", /^1 .*: 500 HTTP\/1.1 200 OK\n$/],
  [["HTTP/1.1 2000 OK\r\n\r\n"], "close", /^1 .*: not HTTP: /],
  [["\r\nHTTP/1.1 200 OK\r\n\r\n"], "close", /^1 .*: not HTTP: /],
  [["SSH-2.0\x1b[2J\r\n\r\n\r\nmore\r\n"], "close", /^1 .*: not HTTP: SSH-2\.0 \[2J more\n$/],
  [[], "close", /^1 .*: not HTTP:\n$/],
  [[OK], "more", /^0 200( x{1,196})?\n$/],
  [[], "more", /^1 .*: not HTTP: x{1,190}\n$/],
  [["HTTP/1.1 200 OK\r\n"], "silence", /^1 127\.0\.0\.1 port \d+: no answer within 2 seconds\n$/],
];

Deno.test(spec("--health goes by the status alone, and soon, whatever answers", async (context) => {
  const asked = await Promise.all(ANSWERS.map(([parts, then]) => askServer(parts, then)));
  for (const [n, [parts, then, seen]] of ANSWERS.entries()) {
    await context.step(`${JSON.stringify(parts)}, ${then}`, () => assertMatch(asked[n]!, seen));
  }
}));

// ---- Drain ----

Deno.test("the drain that HAProxy needs follows the formula beside it", () => {
  const [, inter, fall, seconds] = /`inter (\d+)s fall (\d+)`[^.]*?(\d+)\./.exec(DOCUMENT)!;
  assertEquals(Number(seconds), Number(inter) * (Number(fall) + 1));
});

/** A request that runs until `takeAnswer`: by HTTP/2, from a client that gives no window before. */
async function holdRequest({ port }: RunningService) {
  const connection = await connect(port);
  const waitForText = async (text: string) => {
    while (!connection.received.includes(text)) assert(await connection.read(), "it was cut off");
  };
  const fields = { ":method": "GET", ":scheme": "http", ":authority": "x", ":path": "/health" };
  const noWindow = formatFrame(4, 0, 0, "\0\x04\0\0\0\0");
  await connection.send(HTTP2_PREFACE + noWindow + formatHeaders(1, Object.entries(fields)));
  await waitForText("\x01\x04\0\0\0\x01"); // the head of the answer
  const takeAnswer = async () => {
    await connection.send(formatFrame(8, 0, 1, "\0\0\x10\0"));
    await waitForText('{"status":"healthy"');
    connection.close();
  };
  return { takeAnswer, [Symbol.dispose]: () => connection.close() };
}

/** How a stop ends: its signal, its variables, the exit code and the last message. */
const STOPS = [
  ["SIGTERM", { DRAIN_SECONDS: "1", SHUTDOWN_SECONDS: "300" }, 0, "stopped"],
  ["SIGINT", { SHUTDOWN_SECONDS: "300" }, 0, "stopped"],
  ["SIGTERM", { SHUTDOWN_SECONDS: "1" }, 1, "stopped before all requests were finished"],
  ["SIGINT", { SHUTDOWN_SECONDS: "300" }, 130, FORCED],
] as const;

for (const form of CONTRACT_FORMS) {
  Deno.test(spec(`${form.name}: while draining it answers, and asks to close`, async () => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
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
    const stops = form.isEmulated ? STOPS.slice(0, 1) : STOPS; // emulation takes time
    await Promise.all(stops.map(async ([signal, env, code, last]) => {
      await using service = await start(form, env);
      using idle = await connect(service.port);
      await idle.send(formatRequest("/health"));
      assertEquals((await idle.receive())?.status, 200);
      using running = await holdRequest(service);
      service.kill(signal);
      await waitUntil("the port to close", () => isRefused(service.port));
      assertEquals(await idle.receiveAll(), "");
      if (code === 0) await running.takeAnswer();
      if (code === 130) await sleep(SIGNAL_PAUSE).then(() => service.kill(signal));
      assertEquals(await service.waitForCode(), code, last);
      assertEquals(readMessages(service), ["listening", "draining", last]);
      const { draining, end, milliseconds } = readEnd(service);
      assertEquals([draining!.signal, end!.level], [signal, code === 0 ? "info" : "warn"]);
      const least = Object.values(env).includes("1") ? 990 : 0;
      assert(milliseconds >= least && milliseconds < 9900, `${last} after ${milliseconds} ms`);
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
      await using service = await start(form, { DRAIN_SECONDS: "300" });
      await press(service, presses);
      const code = await service.waitForCode();
      assertEquals(readMessages(service), ["listening", "draining", FORCED], `${presses}`);
      const { end, milliseconds } = readEnd(service);
      assertEquals(end!.signal, { 130: "SIGINT", 143: "SIGTERM" }[code]);
      assert(milliseconds >= 99, `after ${milliseconds} ms`);
    }));
  }, reason));

  if (!form.isImage) continue;
  Deno.test(spec(`${form.name}: as process 1 it hears a signal of its first moments`, async () => {
    await using run = await launch(form, { HOST: "127.0.0.1", PORT: "0" });
    const look = async () => Deno.readLinkSync(`/proc/${await run.readPid()}/exe`);
    const isService = (program: string) => program.endsWith(project.name);
    await waitUntil("the container", () => look().catch(String), isService);
    // first the runtime hears nothing, then it ends itself by 139; and Docker kills after 10 s
    await press(run, Array<Presses>(40).fill(["SIGTERM", 200]).flat());
    assertMatch(`${await run.waitForCode()} ${run.stdout}`, /^(139 $|(0|143) {)/);
  }, reason));
}

// the watcher of `dev` has an exit code of its own
for (const [task, code] of [["start", 130], ["dev", 0]] as const) {
  Deno.test(spec(`source: Ctrl+C in deno task ${task} drains, once more ends it`, async () => {
    const keys = makeTempPath("keys");
    await readOutput(["mkfifo", keys]);
    const press = () => Deno.writeTextFile(keys, "\x03");
    // `exec`, since `script` runs a shell, and one that stays would get the keys too
    const form = makeProcessForm(task, () => ["exec", Deno.execPath(), "task", task]);
    await using run = await start(putOnTerminal(form, "", keys), { DRAIN_SECONDS: "300" });
    await press(); // and two signals come, in `dev` three
    await run.waitForOutput(/draining signal=SIGINT seconds=300\r\n/);
    await sleep(SIGNAL_PAUSE);
    assert(!run.stdout.includes(FORCED), "the second signal counted");
    await press();
    assertEquals(await run.waitForCode(), code);
    assertMatch(run.stdout, /draining .*\r\n\S+Z WARN .*signal=SIGINT\r\n$/);
  }, lacks("script")));
}

// ---- Drill ----

for (const form of CONTRACT_FORMS) {
  Deno.test(spec(`${form.name}: SIGUSR2 switches /health, and nothing else`, async () => {
    await using service = await start(form);
    for (const [status, name] of [[503, "unhealthy"], [200, "healthy"], [503, "unhealthy"]]) {
      service.kill("SIGUSR2");
      const look = () => probe(service.port);
      const { body } = await waitUntil(`${name}`, look, (answer) => answer.status === status);
      assertEquals(JSON.parse(body).status, name);
      const { status: other, headers } = await sendRaw(service.port, formatRequest("/"));
      assertEquals([other, headers.get("connection")], [200, null], "it serves on");
    }
    service.kill("SIGTERM");
    assertEquals(await service.waitForCode(), 0);
    const switches = service.lines.filter(({ msg }) => msg === "health switched by hand");
    const seen = switches.map(({ level, status }) => `${level} ${status}`);
    assertEquals(seen, ["warn unhealthy", "warn healthy", "warn unhealthy"]);
  }));
}

// ---- Behind a proxy ----

const SECTION = /\n## Behind a proxy\n(.*?)\n## /s.exec(DOCUMENT)![1]!;
const HAPROXY = /```haproxy\n(.*?)```/s.exec(SECTION)![1]!;
const DIRECTIVES = SECTION.matchAll(/`((?:proxy_set_header|client_header_timeout) [^`;]*);?`/g);
const FOLDERS = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]; // nginx's own are root's
const NGINX = `
daemon off;
pid FILE.pid;
events {}
http {
  access_log off;
  ${FOLDERS.map((name) => `${name}_temp_path FILE.d;`).join("")}
  server {
    listen 127.0.0.1:8080;
    ${Array.from(DIRECTIVES, ([, directive]) => `${directive};`).join("")}
    location / { proxy_pass http://127.0.0.1:5000; }
  }
}`;
const CADDY = `
{
  admin off
}
http://:8080 {
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:5000
}`;

/** Proxies on 8080 in front of 5000, as the document configures them. */
const PROXIES = [
  [HAPROXY, "haproxy", "-dW", "-db", "-f"], // it takes no warning
  [NGINX, "nginx", "-e", "stderr", "-c"],
  [CADDY, "caddy", "run", "--adapter", "caddyfile", "--config"],
] as const;

for (const form of FORMS) {
  for (const [configuration, program, ...args] of PROXIES) {
    const reasons = [lacks(program), Deno.build.os !== "linux" && "lacks a second loopback"];
    Deno.test(spec(`${form.name}: behind ${program} client_ip is the client's`, async () => {
      await using service = await start(form, { TRUST_PROXY: "1" });
      const port = findFreePort();
      const file = makeTempPath(`${program}.conf`);
      const text = configuration.replace(":8080", `:${port}`).replaceAll("FILE", file);
      await Deno.writeTextFile(file, text.replace(":5000", `:${service.port}`));
      const proxy = makeProcessForm(program, () => [program, ...args, file]);
      await using _run = await launch(proxy, { XDG_CONFIG_HOME: file, XDG_DATA_HOME: file });
      using client = Deno.createHttpClient({ localAddress: "127.0.0.2" }); // not the proxy's own
      for (const headers of [{}, { "x-forwarded-for": "a, 203.0.113.7, b" }]) {
        const ask = () => fetch(`http://127.0.0.1:${port}/`, { client, headers });
        const look = () => ask().then((response) => response.json()).catch(String);
        const { request } = await waitUntil("an answer", look, ({ request }) => request);
        assertEquals(request.client_ip, "127.0.0.2");
      }
      if (program !== "haproxy") return;
      service.kill("SIGUSR2");
      const look = () => sendRaw(port, formatRequest("/"));
      await waitUntil("HAProxy to see a drill", look, ({ status }) => status === 503);
    }, ...reasons));
  }
}

// ---- Telemetry ----

const OTEL_IMAGE = Deno.env.get("OTEL_IMAGE");
const TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const EXPORTERS = [SOURCE, ...OTEL_IMAGE ? [makeImageForm("image", OTEL_IMAGE)] : []];

for (const [n, form] of [...EXPORTERS, ...FORMS].entries()) {
  const isExporter = n < EXPORTERS.length;
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

Deno.test(spec("source: a silent collector holds up neither probe nor stop", async () => {
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
  service.kill("SIGTERM");
  assertEquals(await service.waitForCode(), 0);
  assert(Date.now() - begun < 10_000, "without a limit each waits ten seconds");
}));
