/** The proof of this folder: behind each file, as it is, a rolling update loses no request. */
import { assertEquals, assertGreater, assertMatch } from "@std/assert";
import { type Form, FORMS, IS_FULL, makeProcessForm, SOURCE } from "../../.test/forms.ts";
import { lacks, readText } from "../../.test/programs.ts";
import { findFreePort } from "../../.test/requests.ts";
import { launch, spec, start } from "../../.test/run.ts";
import { sleep, waitUntil } from "../../.test/waiting.ts";

const PROXIES = {
  "haproxy.cfg": "haproxy",
  "nginx.conf": "nginx",
  "Caddyfile": "caddy",
  "apache.conf": "apache2",
  "default.vcl": "varnishd",
};

/** Starts a proxy by the command in its file's first line. Leaving the scope ends it. */
async function startProxy(file: string, program: string, text: string) {
  await using stack = new AsyncDisposableStack();
  const folder = Deno.makeTempDirSync();
  stack.defer(() => Deno.remove(folder, { recursive: true }));
  Deno.chmodSync(folder, 0o755); // a proxy that root starts may become another user
  Deno.mkdirSync(`${folder}/docs/proxies`, { recursive: true });
  Deno.writeTextFileSync(`${folder}/docs/proxies/${file}`, text);
  const command = /^# (.*)\n/.exec(text)![1]!.replace(`${program} `, "exec $&");
  const form = makeProcessForm(file, () => ["sh", "-c", `cd ${folder} && ${command}`]);
  const PATH = `${Deno.env.get("PATH")}:/usr/sbin`;
  stack.use(await launch(form, { HOME: folder, TMPDIR: folder, PATH }));
  return stack.move();
}

/** Six clients send one request after the other. Three of them keep their connection. */
function startLoad(url: string) {
  const seen = { requests: 0, failures: [] as string[] };
  let isRunning = true;
  const send = async (_: unknown, n: number) => {
    using client = Deno.createHttpClient({ poolMaxIdlePerHost: n % 2 });
    while (isRunning) {
      const answer = await fetch(url, { client }).then((answer) => answer.text(), String);
      if (!answer.includes('"endpoints"')) seen.failures.push(answer);
      seen.requests++;
      await sleep(5);
    }
  };
  const clients = Array.from(Array(6), send);
  const end = async () => {
    isRunning = false;
    await Promise.all(clients);
  };
  return { seen, [Symbol.asyncDispose]: end };
}

/** Asserts that the client's address, HEAD, `Allow` and a long path pass. */
async function assertPasses(url: string) {
  using client = Deno.createHttpClient({ localAddress: "127.0.0.2" }); // not the proxy's own
  for (const headers of [{}, { "x-forwarded-for": "a, 203.0.113.7, b" }]) {
    const { request } = await fetch(url, { client, headers }).then((answer) => answer.json());
    assertEquals(request.client_ip, "127.0.0.2");
  }
  const { headers } = await fetch(url, { client, method: "HEAD" });
  assertGreater(Number(headers.get("content-length")), 500);
  const refused = await fetch(url, { client, method: "DELETE" });
  await refused.body?.cancel();
  assertEquals([refused.status, refused.headers.get("allow")], [405, "GET, HEAD, OPTIONS"]);
  const unknown = await fetch(url.padEnd(url.length + 999, "a"), { client });
  assertMatch(await unknown.text(), /Endpoint does not exist/);
}

/** Replaces two instances behind a proxy in turn, and gives what the clients saw meanwhile. */
async function updateInTurn(form: Form, file: string, program: string) {
  const text = readText(`docs/proxies/${file}`);
  const DRAIN_SECONDS = /DRAIN_SECONDS=(\d+)/.exec(text)![1]!;
  await using stack = new AsyncDisposableStack();
  const startInstance = async (PORT = "0") =>
    stack.use(await start(form, { PORT, DRAIN_SECONDS, TRUST_PROXY: "1" }));
  const [one, two] = [await startInstance(), await startInstance()];
  const ports: Record<string, number> = { 5001: one.port, 5002: two.port, 8080: findFreePort() };
  const moved = text.replace(/\b(5001|5002|8080)\b/g, (port) => String(ports[port]));
  stack.use(await startProxy(file, program, moved));
  const url = `http://127.0.0.1:${ports[8080]}/`;
  const ask = () => fetch(url).then((answer) => answer.text(), String);
  await waitUntil("an answer", ask, (body) => body.includes('"endpoints"'));
  await assertPasses(url);
  await using load = startLoad(url);
  for (const instance of [one, two]) {
    instance.kill("SIGTERM");
    assertEquals(await instance.waitForCode(), 0);
    await startInstance(String(instance.port));
    await sleep(4000); // for the proxy to see it
  }
  return load.seen;
}

for (const [file, program] of Object.entries(PROXIES)) {
  const isSample = file === "haproxy.cfg"; // one proves the service, the others their files
  for (const form of isSample ? FORMS : [SOURCE]) {
    Deno.test(spec(
      `${form.name}: behind ${file} a rolling update loses no request`,
      async () => {
        const { requests, failures } = await updateInTurn(form, file, program);
        console.log(`${file}: ${failures.length} of ${requests} requests failed`);
        assertGreater(requests, 100);
        assertEquals(failures, []);
      },
      {
        unless: [
          !isSample && !IS_FULL && "with FULL=1",
          lacks(program),
          Deno.build.os !== "linux" && "lacks a second loopback",
        ],
      },
    ));
  }
}
