/** The proof of "Probers" in `operations.md`: the verdicts of real programs, with FULL=1. */
import { assertEquals } from "@std/assert";
import { IS_FULL, makeProcessForm, SOURCE } from "../.test/forms.ts";
import { isFile, lacks, runProgram } from "../.test/programs.ts";
import { findFreePort, HAS_IPV6 } from "../.test/requests.ts";
import { launch, spec, start } from "../.test/run.ts";
import { waitUntil } from "../.test/waiting.ts";

/** Gives a verdict on the service at this port. It may write what it needs to the folder. */
type Probe = (port: number, folder: string) => Promise<number>;

const CHECK_HTTP = "/usr/lib/nagios/plugins/check_http";
const LACKS_CHECK_HTTP = !isFile(CHECK_HTTP) && "check_http is not installed";

/** The exit code of a command. */
function run(command: string): Probe {
  return async (port) => (await runProgram(command.replace("PORT", `${port}`).split(" "))).code;
}

/** Whether one round reports a failure; its exit code is 1 whatever it finds. */
async function runMonit(port: number, folder: string): Promise<number> {
  const file = `${folder}/monitrc`;
  const text = `set daemon 30
set idfile ${folder}/id
set statefile ${folder}/state
check host web with address 127.0.0.1
  if failed port ${port} protocol http request "/health" then alert
`;
  Deno.writeTextFileSync(file, text, { mode: 0o600 }); // it takes no file that others may read
  const { stderr } = await runProgram(["monit", "-c", file, "-p", `${folder}/pid`, "validate"]);
  return Number(stderr.includes("'web' failed"));
}

/** The metric `probe_success`. */
async function askBlackbox(port: number, folder: string): Promise<number> {
  const file = `${folder}/blackbox.yml`;
  Deno.writeTextFileSync(file, "modules: { web: { prober: http } }\n");
  const address = `127.0.0.1:${findFreePort()}`;
  const options = [`--config.file=${file}`, `--web.listen-address=${address}`];
  const form = makeProcessForm("blackbox exporter", () => [BLACKBOX, ...options]);
  await using _run = await launch(form);
  const url = `http://${address}/probe?module=web&target=127.0.0.1:${port}/health`;
  const ask = () => fetch(url).then((answer) => answer.text(), String);
  const metrics = await waitUntil("its metrics", ask, (text) => text.includes("\nprobe_success"));
  return Number(/^probe_success (.*)/m.exec(metrics)![1]);
}
const BLACKBOX = "prometheus-blackbox-exporter";

const PROBERS = [
  {
    name: "check_http",
    probe: run(`${CHECK_HTTP} -H 127.0.0.1 -p PORT -u /health`),
    verdicts: { healthy: 0, unhealthy: 2, stopped: 2 },
    reason: LACKS_CHECK_HTTP,
  },
  {
    name: "check_http over IPv6, whose Host has no brackets,",
    probe: run(`${CHECK_HTTP} -H ::1 -p PORT -u /health`),
    verdicts: { healthy: 0, unhealthy: 2, stopped: 2 },
    reason: LACKS_CHECK_HTTP || !HAS_IPV6 && "no IPv6 here",
  },
  {
    name: "blackbox exporter",
    probe: askBlackbox,
    verdicts: { healthy: 1, unhealthy: 0, stopped: 0 },
    reason: lacks(BLACKBOX),
  },
  {
    name: "monit",
    probe: runMonit,
    verdicts: { healthy: 0, unhealthy: 1, stopped: 1 },
    reason: lacks("monit"),
  },
  {
    name: "wget",
    probe: run("wget --no-proxy --spider http://127.0.0.1:PORT/health"),
    verdicts: { healthy: 0, unhealthy: 8, stopped: 4 },
    reason: lacks("wget"),
  },
  {
    name: "busybox wget",
    probe: run("busybox wget -Y off --spider http://127.0.0.1:PORT/health"),
    verdicts: { healthy: 0, unhealthy: 1, stopped: 1 },
    reason: lacks("busybox"),
  },
];

for (const { name, probe, verdicts, reason } of PROBERS) {
  Deno.test(spec(
    `${name} tells healthy, unhealthy and stopped`,
    async () => {
      await using stack = new AsyncDisposableStack();
      const folder = Deno.makeTempDirSync();
      stack.defer(() => Deno.remove(folder, { recursive: true }));
      const service = stack.use(await start(SOURCE, { HOST: HAS_IPV6 ? "::" : "127.0.0.1" }));
      const healthy = await probe(service.port, folder);
      service.kill("SIGUSR2");
      await service.waitForOutput(/health switched/);
      const unhealthy = await probe(service.port, folder);
      service.kill("SIGTERM");
      await service.waitForCode();
      const stopped = await probe(service.port, folder);
      assertEquals({ healthy, unhealthy, stopped }, verdicts);
    },
    { unless: [!IS_FULL && "with FULL=1", reason] },
  ));
}
