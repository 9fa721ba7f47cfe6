/**
 * `deno task bench`: the service beside a bare Deno.serve with a static answer of the same size (the
 * ceiling) and beside the same service on Go net/http, in one run.
 *
 * Every server stays up for the whole run, on one core. wrk goes round them from another, a second
 * each, so that a slow moment of the machine meets them all. A request's cost is the CPU time that the
 * server took, user and system, divided by the requests it answered. Figures and ratios are medians
 * over the rounds. `EXECUTABLE` and `CEILING_EXECUTABLE` name compiled forms in place of source runs.
 */
import { makeProcessForm, SOURCE } from "../../.test/forms.ts";
import { lacks, makeTempPath, pathOf, readOutput, runProgram } from "../../.test/programs.ts";
import { findFreePort, formatRequest, sendRaw } from "../../.test/requests.ts";
import { launch, readResources, type Run } from "../../.test/run.ts";

interface Contender {
  readonly name: string;
  readonly command: readonly string[];
  readonly env?: Record<string, string>;
  /** The only path that it answers as the service does; all where there is none. */
  readonly path?: string;
}

/** What is asked for, each with the header fields of a client that asks for it. */
const PATHS = {
  "/health": ["User-Agent: kube-probe/1.34", "Accept: */*", "Connection: close"],
  "/": ["User-Agent: curl/8.14.1", "Accept: */*"],
};

const ROUNDS = Number(Deno.env.get("ROUNDS") || 6);
const TICKS_PER_SECOND = 100;
const missing: string[] = [];
const isPinned = navigator.hardwareConcurrency > 1 && !lacks("taskset");
if (!isPinned) missing.push("taskset or a second core: servers and load share what there is");

function onCore(core: number, command: readonly string[]): string[] {
  return isPinned ? ["taskset", "-c", String(core), ...command] : [...command];
}

/** Starts a server with its log in a file and waits for its first answer, in milliseconds. */
async function start({ name, command, env = {} }: Contender) {
  const port = findFreePort();
  const log = `exec "$@" >"${makeTempPath("log")}" 2>&1`;
  const form = makeProcessForm(name, () => ["sh", "-c", log, "sh", ...onCore(0, command)]);
  const begun = performance.now();
  const run = await launch(form, { HOST: "127.0.0.1", PORT: String(port), ...env });
  await waitForAnswer(run, port);
  const milliseconds = performance.now() - begun;
  const stop = () => run[Symbol.asyncDispose]();
  return { run, port, pid: await run.readPid(), milliseconds, stop };
}

/** Asks without a pause, since what is measured is the time to the first answer. */
async function waitForAnswer(run: Run, port: number) {
  const deadline = performance.now() + 10_000;
  while (true) {
    try {
      return await sendRaw(port, formatRequest("/health", { version: "HTTP/1.0" }));
    } catch {
      if (performance.now() > deadline) throw new Error(`no answer: ${run.describe()}`);
    }
  }
}

/** The CPU time that a process took so far, user and system. */
function readCpuSeconds(pid: number): number {
  const fields = Deno.readTextFileSync(`/proc/${pid}/stat`).split(") ")[1]!.split(" ");
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}

/** Loads a server for a second, and gives the microseconds that a request cost. */
async function load({ port, pid }: { port: number; pid: number }, path: string, fields: string[]) {
  const begun = readCpuSeconds(pid);
  const url = `http://127.0.0.1:${port}${path}`;
  const flags = ["-t1", "-c32", "-d1s", ...fields.flatMap((field) => ["-H", field])];
  const report = await readOutput(onCore(1, ["wrk", ...flags, url]));
  const requests = Number(/(\d+) requests in/.exec(report)![1]);
  return (readCpuSeconds(pid) - begun) / requests * 1e6;
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const [low, high] = [Math.floor((sorted.length - 1) / 2), Math.ceil((sorted.length - 1) / 2)];
  return (sorted[low]! + sorted[high]!) / 2;
}

function printTable(head: string[], rows: (string | number)[][]) {
  const lines = [head, head.map(() => "---"), ...rows];
  console.log(lines.map((cells) => `| ${cells.join(" | ")} |`).join("\n") + "\n");
}

async function findContenders(): Promise<Contender[]> {
  const executable = Deno.env.get("EXECUTABLE");
  const bare = Deno.env.get("CEILING_EXECUTABLE");
  const service = executable ? [executable] : await SOURCE.command({}, "", {});
  const ceiling = bare ? [bare] : [
    ...[Deno.execPath(), "run", "--no-lock", "--allow-net", "--allow-env=PORT,BODY"],
    pathOf("docs/benchmarks/ceiling.ts"),
  ];
  const contenders: Contender[] = [
    { name: "this service", command: service },
    { name: "Deno.serve", command: ceiling, env: { BODY: "80" }, path: "/health" },
    { name: "Deno.serve", command: ceiling, env: { BODY: "630" }, path: "/" },
  ];
  if (lacks("go")) missing.push("Go");
  else {
    const server = makeTempPath("server");
    await readOutput(["go", "build", "-o", server, pathOf("docs/benchmarks/server.go")]);
    contenders.push({ name: "Go", command: [server] });
  }
  return contenders;
}

/** Loads all servers in turn, and prints a table for each path and one for memory. */
async function benchmarkRequests(contenders: Contender[]) {
  const servers: (Contender & Awaited<ReturnType<typeof start>>)[] = [];
  for (const contender of contenders) servers.push({ ...contender, ...await start(contender) });
  const memory = await Promise.all(servers.map(async ({ run }) => {
    return { idle: (await readResources(run)).megabytes, loaded: 0 };
  }));
  for (const [path, fields] of Object.entries(PATHS)) {
    const costs = servers.map((): number[] => []);
    for (let round = -1; round < ROUNDS; round++) { // the first one warms up
      for (const [index, server] of servers.entries()) {
        const cost = await load(server, path, fields);
        if (round >= 0) costs[index]!.push(cost);
        const { megabytes } = await readResources(server.run);
        memory[index]!.loaded = Math.max(memory[index]!.loaded, megabytes);
      }
    }
    const isFor = ({ path: only = path }: Contender) => only === path;
    const compare = (index: number, name: string) => {
      const base = servers.findIndex((server) => server.name === name && isFor(server));
      if (base < 0) return "–";
      return median(costs[index]!.map((cost, round) => costs[base]![round]! / cost)).toFixed(2);
    };
    printTable(
      [`\`${path}\``, "CPU, µs", "of ceiling", "of Go"],
      [...servers.entries()].filter(([, server]) => isFor(server)).map(([index, { name }]) => [
        name,
        median(costs[index]!).toFixed(1),
        compare(index, "Deno.serve"),
        compare(index, "Go"),
      ]),
    );
  }
  printTable(
    ["memory, MB", "idle", "under load"],
    servers.map(({ name, path = "" }, index) => [
      `${name} ${path}`.trim(),
      memory[index]!.idle,
      memory[index]!.loaded,
    ]),
  );
  for (const { stop } of servers) await stop();
}

async function benchmarkStart(contenders: Contender[]) {
  const times: number[][] = contenders.map(() => []);
  for (let round = 0; round < 2 * ROUNDS; round++) {
    for (const [index, contender] of contenders.entries()) {
      const { milliseconds, stop } = await start(contender);
      times[index]!.push(milliseconds);
      await stop();
    }
  }
  printTable(
    ["start-up", "ms to the first answer"],
    contenders.map(({ name, path = "" }, index) => [
      `${name} ${path}`.trim(),
      median(times[index]!).toFixed(0),
    ]),
  );
}

async function benchmarkProbe(contender: Contender) {
  if (!lacks("time")) {
    const { port, stop } = await start(contender);
    const env = { HOST: "127.0.0.1", PORT: String(port) };
    const command = ["time", "--format", "%e %U %S %M", ...contender.command, "--health"];
    const seen: number[][] = [];
    for (let round = 0; round < 2 * ROUNDS; round++) {
      const { stderr } = await runProgram(command, { env });
      seen.push(stderr.trim().split("\n").at(-1)!.split(" ").map(Number));
    }
    const [time, user, system, kilobytes] = [0, 1, 2, 3].map((n) => median(seen.map((r) => r[n]!)));
    printTable(["one `--health` probe", "ms", "ms of CPU", "MB at most"], [[
      "this service",
      (time! * 1000).toFixed(0),
      ((user! + system!) * 1000).toFixed(0),
      (kilobytes! / 1024).toFixed(0),
    ]]);
    await stop();
  } else missing.push("GNU time, for the probe's cost");
}

const contenders = await findContenders();
const version = (await readOutput([contenders[0]!.command[0]!, "--version"])).split("\n")[0];
console.log(`${version}; ${navigator.hardwareConcurrency} cores, ${ROUNDS} rounds\n`);
if (lacks("wrk")) missing.push("wrk, without which there is no load");
else await benchmarkRequests(contenders);
await benchmarkStart(contenders);
await benchmarkProbe(contenders[0]!);
for (const what of missing) console.log(`missing: ${what}`);
