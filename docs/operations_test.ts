/** The proof of `operations.md`: probes, signals and drain, the drill, telemetry. */
import {
  assert,
  assertEquals,
  assertGreater,
  assertLess,
  assertMatch,
  assertNotMatch,
  assertObjectMatch,
} from "@std/assert";
import {
  bindTest,
  connect,
  type Connection,
  CONTRACT_FORMS,
  findFreePort,
  formatRequest,
  FORMS,
  HAS_IPV6,
  isRefused,
  launch,
  probe,
  readText,
  type RunningService,
  sendRaw,
  sleep,
  SOURCE,
  start,
  TELEMETRY_FORMS,
  test,
  waitUntil,
} from "../.ci/harness.ts";

// ---- Probes and drain ----

for (const form of CONTRACT_FORMS) {
  const test = bindTest(form);

  test("--health exits 0 on 200 and 1 on 503, and prints the answer on one line", async () => {
    const hosts = ["0.0.0.0", "127.0.0.1", ...(HAS_IPV6 ? ["::", "::1"] : [])];
    for (const HOST of form.isEmulated ? hosts.slice(0, 1) : hosts) {
      await using service = await start(form, { HOST, DRAIN_SECONDS: "300" });
      // a proxy that the environment names is not for a service on the same machine
      const env = { HOST, PORT: String(service.port), HTTP_PROXY: "http://127.0.0.1:1" };
      await using healthy = await launch(form, env, ["--health"]);
      assertEquals(await healthy.waitForCode(), 0, healthy.stdout);
      assertMatch(healthy.stdout, /^200 {"status":"healthy".*}\n$/);
      assertEquals(healthy.stderr, "");

      service.kill("SIGTERM");
      await service.waitForOutput(/draining/);
      await using draining = await launch(form, env, ["--health"]);
      assertEquals(await draining.waitForCode(), 1);
      assertMatch(draining.stdout, /^\S+ port \d+: 503 {"status":"draining".*}\n$/);
    }
  });

  test("--health exits 1 with one line when nothing or something else answers", async () => {
    const closed = findFreePort();
    using other = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const chat = (async () => {
      using connection = await other.accept();
      await connection.write(new TextEncoder().encode("SSH-2.0\x1b[2J\r\n\r\n\r\nmore\r\n"));
    })();
    for (
      const [HOST, port, line] of [
        ["0.0.0.0", closed, /^127\.0\.0\.1 port \d+: .*refused/],
        ["127.0.0.1", other.addr.port, /^127\.0\.0\.1 port \d+: not HTTP: SSH-2\.0 \[2J more$/m],
      ] as const
    ) {
      await using run = await launch(form, { HOST, PORT: String(port) }, ["--health"]);
      assertEquals(await run.waitForCode(), 1);
      assertMatch(run.stdout, line);
      assertEquals([run.stdout.trimEnd().split("\n").length, run.stderr], [1, ""]);
    }
    await chat;
  });

  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    test(`${signal} ends it in order, idle connections and all`, async () => {
      await using service = await start(form);
      using idle = await connect(service.port);
      await idle.send(formatRequest("/health"));
      assertEquals((await idle.receive())?.status, 200);
      service.kill(signal);
      assertEquals(await idle.receiveAll(), "");
      assertEquals(await service.waitForCode(), 0);
      assert(await isRefused(service.port), "nothing may listen");
      assertEquals(service.lines.map(({ msg }) => msg), ["listening", "draining", "stopped"]);
      assertObjectMatch(service.lines[1]!, { level: "info", signal, seconds: 0 });
    });
  }

  test("while draining it answers requests and closes connections", async () => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
    using early = await connect(service.port);
    await early.send("GET / HTTP/1.1\r\n");
    assertEquals((await probe(service.port)).status, 200);

    service.kill("SIGTERM");
    await service.waitForOutput(/"msg":"draining"/);
    await early.send("Host: x\r\n\r\n"); // a request that had begun
    const answer = await early.receive();
    assertEquals([answer?.status, answer?.headers.get("connection")], [200, "close"]);
    for (const accept of ["", "Accept: text/html\r\n"]) { // and new ones
      const { status, headers } = await sendRaw(
        service.port,
        formatRequest("/", { fields: accept }),
      );
      assertEquals([status, headers.get("connection")], [200, "close"], accept);
    }
    const { status, body } = await probe(service.port);
    assertEquals(status, 503);
    assertMatch(body, /^{"status":"draining",/);
  });

  test("after DRAIN_SECONDS it refuses connections, lets a request finish and exits 0", async () => {
    await using service = await start(form, { DRAIN_SECONDS: "1", SHUTDOWN_SECONDS: "60" });
    using slow = await connect(service.port);
    const fields = "Content-Length: 4\r\n";
    await slow.send(formatRequest("/", { method: "POST", fields, body: "12" }));
    service.kill("SIGTERM");
    const begun = Date.now();
    await waitUntil("the port to close", () => isRefused(service.port));
    assertGreater(Date.now() - begun, 500);
    await slow.send("34").catch(() => {}); // 2.7 may have closed it: it had answered 405 already
    assertEquals(await service.waitForCode(), 0);
  });

  test("after SHUTDOWN_SECONDS it closes what is left and exits 1", async () => {
    await using service = await start(form, { SHUTDOWN_SECONDS: "1" });
    using _stuck = await connectStuck(service);
    service.kill("SIGTERM");
    await waitUntil("the port to close", () => isRefused(service.port));
    assertNotMatch(service.stdout, /stopped/, "the port closes first");
    assertEquals(await service.waitForCode(), 1);
    const [draining, stopped] = service.lines.slice(-2);
    assertEquals([draining!.msg, stopped!.level], ["draining", "warn"]);
    // by the times of the log, which waiting here does not lengthen
    const milliseconds = Date.parse(String(stopped!.time)) - Date.parse(String(draining!.time));
    assert(milliseconds > 900 && milliseconds < 2900, `took ${milliseconds} ms`);
  });

  for (const [signal, code] of [["SIGTERM", 143], ["SIGINT", 130]] as const) {
    test(`a second signal, ${signal}, ends it at once with ${code}`, async () => {
      await using draining = await start(form, { DRAIN_SECONDS: "300" });
      await using closing = await start(form, { SHUTDOWN_SECONDS: "300" });
      using _stuck = await connectStuck(closing);
      draining.kill("SIGTERM");
      closing.kill("SIGINT");
      await draining.waitForOutput(/"msg":"draining"/);
      await waitUntil("the port to close", () => isRefused(closing.port));
      await sleep(300); // the same signal within a moment of 100 ms is the same wish
      draining.kill(signal);
      closing.kill(signal);
      assertEquals([await draining.waitForCode(), await closing.waitForCode()], [code, code]);
    });
  }

  test("SIGUSR2 switches /health between healthy and unhealthy, and nothing else", async () => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
    const readHealth = async () => {
      const { status, body } = await probe(service.port);
      return [status, JSON.parse(body).status];
    };
    for (const expected of [[503, "unhealthy"], [200, "healthy"], [503, "unhealthy"]] as const) {
      service.kill("SIGUSR2");
      await waitUntil(`${expected}`, readHealth, ([status]) => status === expected[0]);
      assertEquals(await readHealth(), [...expected]);
      const { status, headers } = await sendRaw(service.port, formatRequest("/"));
      assertEquals(
        [status, headers.get("connection")],
        [200, null],
        "a drill closes no connection",
      );
    }
    service.kill("SIGTERM");
    await service.waitForOutput(/"msg":"draining"/);
    service.kill("SIGUSR2");
    assertEquals(await readHealth(), [503, "draining"]);
    service.kill("SIGINT");
    assertEquals(await service.waitForCode(), 130);
    const switches = service.lines.filter(({ msg }) => msg === "health switched by hand");
    assertEquals(switches.map(({ level, status }) => [level, status]), [
      ["warn", "unhealthy"],
      ["warn", "healthy"],
      ["warn", "unhealthy"],
    ]);
  }, Deno.build.os === "windows" && "no SIGUSR2");
}

/** Keeps the service from stopping: an HTTP/2 client that never sees that the server leaves. */
async function connectStuck(service: RunningService): Promise<Connection> {
  const stuck = await connect(service.port);
  await stuck.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
  await stuck.read();
  return stuck;
}

// ---- Telemetry ----

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

function sendTraced({ port }: RunningService) {
  return sendRaw(port, formatRequest("/", { fields: `traceparent: 00-${TRACE}-${PARENT}-01\r\n` }));
}

for (const form of TELEMETRY_FORMS) {
  test(`${form.name}: with OTEL_DENO it exports span, metric and log line of a request`, async () => {
    const telemetry = receiveTelemetry();
    const chosen = form === SOURCE ? { OTEL_DENO: "true", OTEL_DENO_CONSOLE: "replace" } : {};
    try {
      await using service = await start(form, { ...telemetry.env, ...chosen });
      assertEquals((await sendTraced(service)).status, 200);
      await waitUntil(
        "the metric",
        telemetry.metrics,
        (text) => text.includes("http.server.request.duration"),
      );
      const isOurs = ({ traceId }: { traceId: string }) => traceId === TRACE;
      await waitUntil("the span", telemetry.spans, (spans) => spans.some(isOurs));
      service.kill("SIGUSR2");
      const hasSeverity = (text: string) =>
        telemetry.logs().some(({ severityText }) => severityText === text);
      await waitUntil("the drill's line", () => hasSeverity("WARN"));
      service.kill("SIGTERM");
      assertEquals(await service.waitForCode(), 0);
      const span = telemetry.spans().find(isOurs);
      assertEquals([span.parentSpanId, span.kind], [PARENT, 2], "a server span under the caller's");
      assertEquals(telemetry.spans().length, 1, "and no other");
      const records = await waitUntil("the log line", telemetry.logs, (logs) => logs.some(isOurs));
      const record = records.find(isOurs);
      assertEquals([record.spanId, record.severityText], [span.spanId, "INFO"]);
      const line = JSON.parse(record.body.stringValue);
      assertEquals([line.msg, line.path], ["request", "/"]);
      await using version = await launch(form, { ...telemetry.env, ...chosen }, ["--version"]);
      assertEquals([await version.waitForCode(), version.stdout !== ""], [0, true]);
      // standard output has each line once, as ever
      const messages = ["listening", "request", "health switched by hand", "draining", "stopped"];
      assertEquals(service.lines.map(({ msg }) => msg), messages);
    } finally {
      await telemetry.stop();
    }
  });
}

test("source: a collector that never answers holds up neither probe nor stop", async () => {
  const [, timeout] = /OTEL_EXPORTER_OTLP_TIMEOUT=(\d+)/.exec(readText("Dockerfile"))!;
  using silent = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const env = {
    OTEL_DENO: "true",
    OTEL_DENO_CONSOLE: "replace",
    OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${silent.addr.port}`,
    OTEL_EXPORTER_OTLP_TIMEOUT: timeout!,
  };
  await using service = await start(SOURCE, env);
  assertEquals((await probe(service.port)).status, 200);
  let begun = Date.now();
  const probeEnv = { ...env, HOST: "127.0.0.1", PORT: String(service.port) };
  await using healthy = await launch(SOURCE, probeEnv, ["--health"]);
  assertEquals(await healthy.waitForCode(), 0);
  assertLess(Date.now() - begun, 8000, "without a limit the exporter waits for ten seconds");
  begun = Date.now();
  service.kill("SIGTERM");
  assertEquals(await service.waitForCode(), 0);
  assertLess(Date.now() - begun, 8000, "docker kills after ten seconds");
});

for (const form of FORMS) {
  test(`${form.name}: without OTEL_DENO it exports nothing`, async () => {
    const telemetry = receiveTelemetry();
    try {
      // an executable has it decided when it is compiled
      const tried = form === SOURCE ? {} : { OTEL_DENO: "true" };
      await using service = await start(form, { ...telemetry.env, ...tried });
      assertEquals((await sendTraced(service)).status, 200);
      service.kill("SIGTERM");
      assertEquals(await service.waitForCode(), 0);
      assert(telemetry.isEmpty(), "something was exported");
    } finally {
      await telemetry.stop();
    }
  });
}
