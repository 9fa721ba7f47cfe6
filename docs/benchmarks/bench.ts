/**
 * `deno task bench`: the service beside what it could be at best (a bare Deno.serve with a static answer
 * of the same size) and what one would pick instead (Go net/http, Node node:http), in one run.
 *
 * Every server stays up for the whole run, on one core; wrk goes round them from another, a second
 * each, so that a slow moment of the machine meets them all. Ratios are medians over the rounds.
 * `EXECUTABLE` and `CEILING_EXECUTABLE` name compiled forms to take instead of source runs.
 */

interface Contender {
  readonly name: string;
  readonly command: readonly string[];
  readonly env?: Record<string, string>;
}

const ROUNDS = Number(Deno.env.get("ROUNDS") || 6);
const HERE = import.meta.dirname!;
const scratch = await Deno.makeTempDir();
const missing: string[] = [];
const pinned = navigator.hardwareConcurrency > 1 && await succeeds("taskset", "-c", "0", "true");
if (!pinned) missing.push("taskset or a second core: servers and load share what there is");

const output = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();

async function succeeds(command: string, ...args: string[]): Promise<boolean> {
  try {
    const { success } = await new Deno.Command(command, { args, stdout: "null", stderr: "null" }).output();
    return success;
  } catch {
    return false;
  }
}

async function run(command: string, ...args: string[]): Promise<string> {
  const { stdout, stderr, success } = await new Deno.Command(command, { args }).output();
  if (!success) throw new Error(`${command} ${args.join(" ")}: ${output(stderr)}`);
  return output(stdout);
}

function onCore(core: number, command: readonly string[]): string[] {
  return pinned ? ["taskset", "-c", String(core), ...command] : [...command];
}

function freePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

/** Starts a server with its log in a file and waits for its first answer, in milliseconds. */
async function start({ command, env = {} }: Contender) {
  const port = freePort();
  const log = `exec "$@" >"${scratch}/${port}.log" 2>&1`;
  const [program, ...args] = ["sh", "-c", log, "sh", ...onCore(0, command)];
  const begun = performance.now();
  const child = new Deno.Command(program!, {
    args,
    env: { HOST: "127.0.0.1", PORT: String(port), ...env },
  }).spawn();
  const request = new TextEncoder().encode("GET /health HTTP/1.0\r\n\r\n");
  while (true) {
    try {
      using connection = await Deno.connect({ hostname: "127.0.0.1", port });
      await connection.write(request);
      if (await connection.read(new Uint8Array(512))) break;
    } catch {
      if (performance.now() - begun > 10_000) throw new Error(`${command} does not answer`);
    }
  }
  const milliseconds = performance.now() - begun;
  const stop = async () => {
    child.kill("SIGTERM");
    await child.status;
  };
  return { port, pid: child.pid, milliseconds, stop };
}

async function rate(port: number, path: string): Promise<number> {
  const url = `http://127.0.0.1:${port}${path}`;
  const [program, ...args] = onCore(1, ["wrk", "-t1", "-c32", "-d1s", url]);
  return Number(/Requests\/sec:\s+([\d.]+)/.exec(await run(program!, ...args))![1]);
}

function megabytes(pid: number): number {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)![1]) / 1024;
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)]! + sorted[Math.ceil((sorted.length - 1) / 2)]!) / 2;
}

function table(head: string[], rows: (string | number)[][]) {
  const lines = [head, head.map(() => "---"), ...rows];
  console.log(lines.map((cells) => `| ${cells.join(" | ")} |`).join("\n") + "\n");
}

async function contenders(): Promise<Contender[]> {
  const flags = (await run(Deno.execPath(), "task", "--quiet", "flags")).split(" ");
  const executable = Deno.env.get("EXECUTABLE");
  const bare = Deno.env.get("CEILING_EXECUTABLE");
  const service = executable ? [executable] : [Deno.execPath(), "run", ...flags, `${HERE}/../../main.ts`];
  const ceiling = bare ? [bare] : [
    ...[Deno.execPath(), "run", "--no-lock", "--allow-net", "--allow-env=PORT,BODY"],
    `${HERE}/ceiling.ts`,
  ];
  const all: Contender[] = [
    { name: "bare Deno.serve, 80 bytes", command: ceiling, env: { BODY: "80" } },
    { name: "bare Deno.serve, 630 bytes", command: ceiling, env: { BODY: "630" } },
    { name: "this service", command: service },
  ];
  if (await succeeds("go", "version")) {
    await run("go", "build", "-o", `${scratch}/server`, `${HERE}/server.go`);
    all.push({ name: "Go net/http", command: [`${scratch}/server`] });
  } else missing.push("Go");
  if (await succeeds("node", "--version")) {
    all.push({ name: "Node node:http", command: ["node", `${HERE}/server.mjs`] });
  } else missing.push("Node");
  return all;
}

async function benchmarkRates(all: Contender[]) {
  const servers = [];
  for (const contender of all) servers.push({ ...contender, ...await start(contender) });
  const idle = servers.map(({ pid }) => megabytes(pid));
  const loaded = servers.map(() => 0);
  for (const [path, ceiling] of [["/health", 0], ["/", 1]] as const) {
    for (const { port } of servers) await rate(port, path); // to warm up
    const rates: number[][] = servers.map(() => []);
    for (let round = 0; round < ROUNDS; round++) {
      for (const [index, { port, pid }] of servers.entries()) {
        rates[index]!.push(await rate(port, path));
        loaded[index] = Math.max(loaded[index]!, megabytes(pid));
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
  if (!await succeeds("/usr/bin/time", "--version")) {
    missing.push("GNU time, for the probe's cost");
    return;
  }
  const { port, stop } = await start({ name, command, env: env ?? {} });
  const seen: number[][] = [];
  for (let round = 0; round < 2 * ROUNDS; round++) {
    const { stderr } = await new Deno.Command("/usr/bin/time", {
      args: ["--format", "%e %U %S %M", ...command, "--health"],
      env: { HOST: "127.0.0.1", PORT: String(port) },
    }).output();
    seen.push(output(stderr).split("\n").at(-1)!.split(" ").map(Number));
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
  const version = (await run(all[2]!.command[0]!, "--version")).split("\n")[0];
  console.log(`${version}; ${navigator.hardwareConcurrency} cores, ${ROUNDS} rounds\n`);
  if (await succeeds("wrk", "-v") || await succeeds("sh", "-c", "command -v wrk")) await benchmarkRates(all);
  else missing.push("wrk, without which there is no load");
  await benchmarkStart(all);
  await benchmarkProbe(all[2]!);
} finally {
  await Deno.remove(scratch, { recursive: true });
}
for (const what of missing) console.log(`missing: ${what}`);
