/**
 * `deno task bench`: the service beside what it could be at best (a bare Deno.serve with a static answer
 * of the same size) and what one would pick instead (Go net/http, Node node:http), in one run.
 *
 * Every server stays up for the whole run, on one core; wrk goes round them from another, a second
 * each, so that a slow moment of the machine meets them all. Ratios are medians over the rounds.
 * `EXECUTABLE` and `CEILING_EXECUTABLE` name compiled forms to take instead of source runs.
 */

import { makeProcessForm, SOURCE } from "../../.test/forms.ts";
import {
  endGuard,
  lacks,
  makeTempPath,
  pathOf,
  readOutput,
  runProgram,
} from "../../.test/programs.ts";
import { findFreePort, formatRequest, sendRaw } from "../../.test/requests.ts";
import { launch, readMegabytes, type Run } from "../../.test/run.ts";

interface Contender {
  readonly name: string;
  readonly command: readonly string[];
  readonly env?: Record<string, string>;
}

const ROUNDS = Number(Deno.env.get("ROUNDS") || 6);
const missing: string[] = [];
const pinned = navigator.hardwareConcurrency > 1 && !lacks("taskset");
if (!pinned) missing.push("taskset or a second core: servers and load share what there is");

function onCore(core: number, command: readonly string[]): string[] {
  return pinned ? ["taskset", "-c", String(core), ...command] : [...command];
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
  return { port, pid: await run.readPid(), milliseconds, stop: () => run[Symbol.asyncDispose]() };
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

async function rate(port: number, path: string): Promise<number> {
  const url = `http://127.0.0.1:${port}${path}`;
  const report = await readOutput(onCore(1, ["wrk", "-t1", "-c32", "-d1s", url]));
  return Number(/Requests\/sec:\s+([\d.]+)/.exec(report)![1]);
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)]! +
    sorted[Math.ceil((sorted.length - 1) / 2)]!) / 2;
}

function table(head: string[], rows: (string | number)[][]) {
  const lines = [head, head.map(() => "---"), ...rows];
  console.log(lines.map((cells) => `| ${cells.join(" | ")} |`).join("\n") + "\n");
}

async function contenders(): Promise<Contender[]> {
  const executable = Deno.env.get("EXECUTABLE");
  const bare = Deno.env.get("CEILING_EXECUTABLE");
  const service = executable ? [executable] : await SOURCE.command({}, "", {});
  const ceiling = bare ? [bare] : [
    ...[Deno.execPath(), "run", "--no-lock", "--allow-net", "--allow-env=PORT,BODY"],
    pathOf("docs/benchmarks/ceiling.ts"),
  ];
  const all: Contender[] = [
    { name: "bare Deno.serve, 80 bytes", command: ceiling, env: { BODY: "80" } },
    { name: "bare Deno.serve, 630 bytes", command: ceiling, env: { BODY: "630" } },
    { name: "this service", command: service },
  ];
  if (lacks("go")) missing.push("Go");
  else {
    const server = makeTempPath("server");
    await readOutput(["go", "build", "-o", server, pathOf("docs/benchmarks/server.go")]);
    all.push({ name: "Go net/http", command: [server] });
  }
  if (lacks("node")) missing.push("Node");
  else {all.push({
      name: "Node node:http",
      command: ["node", pathOf("docs/benchmarks/server.mjs")],
    });}
  return all;
}

async function benchmarkRates(all: Contender[]) {
  const servers = [];
  for (const contender of all) servers.push({ ...contender, ...await start(contender) });
  const idle = servers.map(({ pid }) => readMegabytes(pid));
  const loaded = servers.map(() => 0);
  for (const [path, ceiling] of [["/health", 0], ["/", 1]] as const) {
    for (const { port } of servers) await rate(port, path); // to warm up
    const rates: number[][] = servers.map(() => []);
    for (let round = 0; round < ROUNDS; round++) {
      for (const [index, { port, pid }] of servers.entries()) {
        rates[index]!.push(await rate(port, path));
        loaded[index] = Math.max(loaded[index]!, readMegabytes(pid));
      }
    }
    const ratio = (index: number, base: number) =>
      median(rates[index]!.map((value, round) => value / rates[base]![round]!)).toFixed(2);
    const go = servers.findIndex(({ name }) => name.startsWith("Go"));
    table(
      [`\`GET ${path}\``, "requests/s", "of the ceiling", "of Go"],
      servers.flatMap(({ name }, index) =>
        index === 1 - ceiling ? [] : [[
          name,
          Math.round(median(rates[index]!)),
          ratio(index, ceiling),
          go < 0 ? "–" : ratio(index, go),
        ]]
      ),
    );
  }
  table(
    ["resident memory", "idle, MB", "under load, MB"],
    servers.map(({ name }, index) => [name, idle[index]!.toFixed(0), loaded[index]!.toFixed(0)]),
  );
  for (const { stop } of servers) await stop();
}

async function benchmarkStart(all: Contender[]) {
  const times: number[][] = all.map(() => []);
  for (let round = 0; round < 2 * ROUNDS; round++) {
    for (const [index, contender] of all.entries()) {
      const { milliseconds, stop } = await start(contender);
      times[index]!.push(milliseconds);
      await stop();
    }
  }
  table(
    ["start-up", "ms to the first answer", "of a bare Deno.serve"],
    all.map(({ name }, index) => [
      name,
      median(times[index]!).toFixed(0),
      median(times[index]!.map((value, round) => value / times[0]![round]!)).toFixed(2),
    ]),
  );
}

async function benchmarkProbe({ name, command, env }: Contender) {
  if (lacks("time")) {
    missing.push("GNU time, for the probe's cost");
    return;
  }
  const { port, stop } = await start({ name, command, env: env ?? {} });
  const seen: number[][] = [];
  for (let round = 0; round < 2 * ROUNDS; round++) {
    const { stderr } = await runProgram(
      ["/usr/bin/time", "--format", "%e %U %S %M", ...command, "--health"],
      { env: { HOST: "127.0.0.1", PORT: String(port) } },
    );
    seen.push(stderr.trim().split("\n").at(-1)!.split(" ").map(Number));
  }
  const column = (index: number) => median(seen.map((row) => row[index]!));
  table(["one `--health` probe", "takes"], [
    ["time", `${(column(0) * 1000).toFixed(0)} ms`],
    ["CPU", `${((column(1) + column(2)) * 1000).toFixed(0)} ms`],
    ["memory at most", `${(column(3) / 1024).toFixed(0)} MB`],
  ]);
  await stop();
}

try {
  const all = await contenders();
  const version = (await readOutput([all[2]!.command[0]!, "--version"])).split("\n")[0];
  console.log(`${version}; ${navigator.hardwareConcurrency} cores, ${ROUNDS} rounds\n`);
  if (lacks("wrk")) missing.push("wrk, without which there is no load");
  else await benchmarkRates(all);
  await benchmarkStart(all);
  await benchmarkProbe(all[2]!);
} finally {
  await endGuard();
}
for (const what of missing) console.log(`missing: ${what}`);
