/**
 * What the tests and the benchmark drive the service with: its forms, a run of it, requests, waiting.
 *
 * `EXECUTABLE` and `IMAGE` name forms to test beside the source, `OTEL_IMAGE` an image with telemetry,
 * `ARM64_IMAGE` one that Docker emulates, which takes part in the tests of `CONTRACT_FORMS` alone.
 * `FULL=1` gives mutants, floods and rolling updates their full size, as `.ci/run` does; `FUZZ_SEED` and
 * `FUZZ_COUNT` repeat a run of the mutants, and `SOAK` says how many requests a soak sends.
 *
 * @module
 */
import type { Config } from "../main.ts";
import { waitFor } from "./waiting.ts";

export * from "./requests.ts";
export * from "./waiting.ts";

/** What the configuration is when no variable is set. */
export const DEFAULTS: Config = {
  HOST: "0.0.0.0",
  PORT: 5000,
  LOG_LEVEL: "info",
  LOG_FORMAT: "json",
  TRUST_PROXY: 0,
  DRAIN_SECONDS: 0,
  SHUTDOWN_SECONDS: 8,
};

/** Whether what takes long runs at its full size. */
export const IS_FULL = Boolean(Deno.env.get("FULL"));

// ---- What is there ----

/** The path of a file of the project. */
export function pathOf(file: string): string {
  return `${import.meta.dirname}/../${file}`;
}

/** The text of a file of the project. */
export function readText(file: string): string {
  return Deno.readTextFileSync(pathOf(file));
}

/** Why a program cannot be run here; nothing when it can. */
export function lacks(program: string): string | undefined {
  const folders = (Deno.env.get("PATH") ?? "").split(Deno.build.os === "windows" ? ";" : ":");
  return [...folders, "/usr/sbin"].some((folder) => isFile(`${folder}/${program}`))
    ? undefined
    : `${program} is not installed`;
}

/** Why so many descriptors cannot be had here; nothing when they can. */
export function lacksDescriptors(count: number): string | undefined {
  if (Deno.build.os !== "linux") return "needs /proc";
  const limits = Deno.readTextFileSync("/proc/self/limits");
  const hard = Number(/^Max open files\s+\S+\s+(\d+)/m.exec(limits)?.[1] ?? Infinity);
  return hard < count ? `needs ${count} descriptors, and ${hard} is the hard limit` : undefined;
}

/** Whether a path is that of a file. */
export function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** Whether this machine has IPv6. */
export const HAS_IPV6 = (() => {
  try {
    using _listener = Deno.listen({ hostname: "::1", port: 0 });
    return true;
  } catch {
    return false;
  }
})();

/** A port that nothing listens on. */
export function findFreePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

// ---- Nothing is left behind ----

/**
 * A shell that outlives this process, however that ends: it runs what `atExit` left it, then removes
 * the folder for temporary files.
 */
interface Guard {
  readonly folder: string;
  readonly shell: Deno.ChildProcess;
}

const GUARD_SCRIPT = `trap "" INT TERM HUP
read -r _
for file in "$0"/*.exit; do [ ! -f "$file" ] || sh "$file" >/dev/null 2>&1; done
for try in 1 2 3 4 5; do rm -rf "$0" && break; sleep 1; done # what was killed may still write`;
let guard: Guard | undefined;
let names = 0;

function startGuard(): Guard {
  if (guard) return guard;
  const folder = Deno.makeTempDirSync({ prefix: "devops-info-service-" });
  const shell = new Deno.Command("sh", {
    args: ["-c", GUARD_SCRIPT, folder],
    stdin: "piped",
    detached: true, // so that Ctrl+C does not reach it
  }).spawn();
  return guard = { folder, shell };
}

/** Ends the guard, and with it all that a test left behind. */
export async function endGuard() {
  await guard?.shell.stdin.close();
  await guard?.shell.status;
  guard = undefined;
}

/** A path for a temporary file or folder, which is gone when the tests are. */
export function makeTempPath(name: string): string {
  return `${startGuard().folder}/${++names}-${name}`;
}

/** Runs a shell command when this process ends before the returned function was called. */
export function atExit(command: string): () => void {
  const file = makeTempPath("command.exit");
  Deno.writeTextFileSync(file, command);
  return () => {
    try {
      Deno.removeSync(file);
    } catch { // with --fail-fast the guard may have ended, and taken it along
    }
  };
}

// ---- Programs ----

interface ProgramOptions {
  readonly env?: Record<string, string>;
  /** What the program reads from standard input. */
  readonly input?: string;
}

/** What came of a program. */
export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs a program to its end, whatever the end is. */
export async function runProgram(
  command: readonly string[],
  options: ProgramOptions = {},
): Promise<Outcome> {
  const [program, ...args] = command;
  const { DENO_COVERAGE_DIR: _, ...inherited } = Deno.env.toObject(); // only the service's coverage counts
  const child = new Deno.Command(program!, {
    args,
    clearEnv: true,
    env: { ...inherited, ...options.env },
    cwd: pathOf(""),
    stdin: options.input === undefined ? "null" : "piped",
    stdout: "piped",
    stderr: "piped",
    detached: true,
  }).spawn();
  const forget = atExit(`kill -s KILL -- -${child.pid}`);
  try {
    if (options.input !== undefined) {
      await new Blob([options.input]).stream().pipeTo(child.stdin).catch(() => {}); // it may not read all
    }
    const output = await waitFor(child.output(), () => `the end of ${command.join(" ")}`, 120);
    const [stdout, stderr] = [output.stdout, output.stderr].map((bytes) =>
      new TextDecoder().decode(bytes)
    );
    return { code: output.code, stdout: stdout!, stderr: stderr! };
  } finally {
    forget();
  }
}

/** Runs a program that must succeed and gives what it prints. */
export async function readOutput(
  command: readonly string[],
  options?: ProgramOptions,
): Promise<string> {
  const { code, stdout, stderr } = await runProgram(command, options);
  if (code !== 0) throw new Error(`${command.join(" ")}: exit code ${code}: ${stdout}${stderr}`);
  return stdout.trim();
}

/** Runs `docker` and gives what it prints. */
export function docker(...args: string[]): Promise<string> {
  return readOutput(["docker", ...args]);
}

/**
 * Runs a program that uses packages from npm, such as those of `.ci/`: by itself and under a lock of its
 * own, since the project's lock is for std alone. It is type-checked when it has changed.
 *
 * @param file of the program
 * @param input it gets, as JSON
 * @returns what it prints; nothing when its packages cannot be had
 */
export async function runTool(file: string, input: unknown): Promise<string | undefined> {
  const flags = ["--quiet", "--no-config", "--frozen", `--lock=${pathOf(".ci/deno.lock")}`];
  const command = [Deno.execPath(), "run", "--check", "--allow-all", ...flags, file];
  const { code, stdout, stderr } = await runProgram(command, { input: JSON.stringify(input) });
  if (code === 0) return stdout.trim();
  if (stderr.includes("error sending request")) return undefined;
  throw new Error(`${file}: exit code ${code}: ${stderr}`);
}

/** Says that a part of a test is left out, and why. */
export async function leaveOut(context: Deno.TestContext, reason: string) {
  await context.step({ name: `left out: ${reason}`, ignore: true, fn() {} });
}

/** A container that runs in the background. Leaving its scope removes it. */
export interface Container extends AsyncDisposable {
  readonly name: string;
}

/** Runs a container in the background, with these arguments of `docker run`. */
export async function runContainer(...args: string[]): Promise<Container> {
  const name = `devops-info-service-${crypto.randomUUID()}`;
  const forget = atExit(`docker rm --force ${name}`);
  const remove = async () => {
    await docker("rm", "--force", name);
    forget();
  };
  try {
    await docker("run", "--detach", "--name", name, ...args);
  } catch (error) {
    await remove();
    throw error;
  }
  return { name, [Symbol.asyncDispose]: remove };
}

/** Gives a part of what Docker knows of a container or an image. */
export async function inspect(what: string, name: string) {
  return JSON.parse(await docker("inspect", "--format", `{{json ${what}}}`, name));
}

// ---- Forms ----

/** A way to run the service. */
export interface Form {
  readonly name: string;
  readonly isImage: boolean;
  readonly isEmulated?: boolean;
  /** Program and arguments that run it with these variables and limits. */
  command(env: Record<string, string>, container: string, limits: Limits): Promise<string[]>;
}

/** What a run may take. */
export interface Limits {
  readonly descriptors?: number;
  /** Of a container; a process of its own has none. */
  readonly memory?: string;
}

/** The form of a command that is the service. */
export function makeProcessForm(
  name: string,
  getCommand: () => string[] | Promise<string[]>,
): Form {
  return {
    name,
    isImage: false,
    async command(_env, _container, { descriptors }) {
      const command = await getCommand();
      return descriptors
        ? ["sh", "-c", `ulimit -n ${descriptors} && exec "$0" "$@"`, ...command]
        : command;
    },
  };
}

/** The form behind a program that runs it, such as a shell. */
export function wrapForm(form: Form, program: readonly string[]): Form {
  return {
    ...form,
    command: async (
      env,
      container,
      limits,
    ) => [...program, ...await form.command(env, container, limits)],
  };
}

/** The form on a terminal; `| cat` takes its standard output off again. */
export function inTerminal(form: Form, output = ""): Form {
  return {
    ...form,
    command: async (env, container, limits) => {
      const command = await form.command(env, container, limits);
      return [
        "script",
        "--quiet",
        "--return",
        "--command",
        `${command.join(" ")} ${output}`,
        "/dev/null",
      ];
    },
  };
}

/** How an image is run, and how the README says to. */
export const HARDENED = [
  ...[
    "--read-only",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--pids-limit",
    "64",
  ],
];

function makeImageForm(name: string, image: string, options: (limits: Limits) => string[]): Form {
  return {
    name,
    isImage: true,
    command: (env, container, limits) =>
      Promise.resolve([
        ...["docker", "run", "--rm", "--name", container, "--network", "host", ...HARDENED],
        ...(limits.descriptors ? ["--ulimit", `nofile=${limits.descriptors}`] : []),
        ...options(limits),
        ...Object.entries(env).flatMap(([name, value]) => ["--env", `${name}=${value}`]),
        image,
      ]),
  };
}

let sourceFlags: Promise<string[]> | undefined;

/** The flags that the source runs with. */
export function readSourceFlags(): Promise<string[]> {
  return sourceFlags ??= readOutput([Deno.execPath(), "task", "--quiet", "flags"]).then((text) =>
    text.split(" ")
  );
}

/** The service run from its source. */
export const SOURCE = makeProcessForm(
  "source",
  async () => [Deno.execPath(), "run", "--quiet", ...await readSourceFlags(), "main.ts"],
);

/** The memory of a container, where a test does not say it. */
export const IMAGE_MEMORY = "128m";
const limitMemory = ({ memory = IMAGE_MEMORY }: Limits) => ["--memory", memory];

/** The images to test, where they are named. */
export const IMAGE = Deno.env.get("IMAGE");
export const ARM64_IMAGE = Deno.env.get("ARM64_IMAGE");
const EXECUTABLE = Deno.env.get("EXECUTABLE");
const OTEL_IMAGE = Deno.env.get("OTEL_IMAGE");

/** The forms that are there. */
export const FORMS = [
  SOURCE,
  ...(EXECUTABLE ? [makeProcessForm("executable", () => [EXECUTABLE])] : []),
  ...(IMAGE ? [makeImageForm("image", IMAGE, limitMemory)] : []),
];

/** The forms that are held to the contract: emulation takes time, and memory beyond any limit. */
export const CONTRACT_FORMS: Form[] = [
  ...FORMS,
  ...(ARM64_IMAGE ? [makeEmulatedForm("arm64 image", ARM64_IMAGE, "linux/arm64")] : []),
];

function makeEmulatedForm(name: string, image: string, platform: string): Form {
  return { ...makeImageForm(name, image, () => ["--platform", platform]), isEmulated: true };
}

/** Why a test with many runs is left out; nothing where it is not. */
export function findSlowness({ isEmulated }: Form): string | undefined {
  return isEmulated
    ? "emulation takes time, and the processor makes no difference here"
    : undefined;
}

/** The forms that can export telemetry. */
export const TELEMETRY_FORMS = [
  SOURCE,
  ...(OTEL_IMAGE ? [makeImageForm("image", OTEL_IMAGE, limitMemory)] : []),
];

// ---- Tests ----

/** The runs of the present test, whose output a failure shows. */
const runs: Run[] = [];
let hasHooks = false;

/**
 * Declares a test. Where it fails, the error shows what the service wrote.
 *
 * @param name what holds
 * @param fn the proof
 * @param reasons why it cannot run here; the first one that is not empty leaves the test out, by name
 */
export function test(
  name: string,
  fn: (context: Deno.TestContext) => Promise<void> | void,
  ...reasons: (string | false | undefined)[]
) {
  if (!hasHooks) {
    hasHooks = true;
    Deno.test.beforeAll(() => void startGuard());
    Deno.test.afterAll(() => endShared().finally(endGuard));
  }
  const reason = reasons.find(Boolean);
  Deno.test({
    name: reason ? `${name} [left out: ${reason}]` : name,
    ignore: Boolean(reason),
    fn: async (context) => {
      runs.length = 0;
      try {
        await fn(context);
      } catch (error) {
        if (error instanceof Error) error.message += runs.map((run) => run.describe()).join("");
        throw error;
      }
    },
  });
}

/** A `test` whose names begin with a form's. */
export function bindTest(form: Form): typeof test {
  return (name, ...rest) => test(`${form.name}: ${name}`, ...rest);
}

// ---- A run of the service ----

/** One run of the service. Leaving its scope ends it. */
export class Run implements AsyncDisposable {
  /** What it wrote so far. */
  stdout = "";
  stderr = "";
  readonly form: Form;
  readonly #child: Deno.ChildProcess;
  readonly #container: string;
  readonly #forget: () => void;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #ended: Promise<void>;
  #hasEnded = false;
  #arrived = Promise.withResolvers<void>();
  #resumed = Promise.withResolvers<void>();

  /** Use {@linkcode launch} or {@linkcode start}. */
  constructor(form: Form, child: Deno.ChildProcess, container: string, forget: () => void) {
    this.form = form;
    this.#child = child;
    this.#container = container;
    this.#forget = forget;
    this.#reader = child.stdout.getReader();
    this.#resumed.resolve();
    this.#ended = Promise.all([
      child.status,
      this.#readOutput(),
      this.#readErrors(),
    ]).then(() => {
      this.#hasEnded = true;
      this.#arrived.resolve();
      this.#forget();
    });
  }

  async #readOutput() {
    const decoder = new TextDecoder();
    for (let chunk; !(chunk = await this.#reader.read()).done;) {
      this.stdout += decoder.decode(chunk.value, { stream: true });
      this.#arrived.resolve();
      this.#arrived = Promise.withResolvers();
      await this.#resumed.promise;
    }
  }

  async #readErrors() {
    const decoder = new TextDecoder();
    for await (const chunk of this.#child.stderr) {
      this.stderr += decoder.decode(chunk, { stream: true });
      await this.#resumed.promise;
    }
  }

  /** What a failed test shows of it. */
  describe(): string {
    const tail = (text: string) => text.length > 2000 ? `… ${text.slice(-2000)}` : text;
    return `\n--- ${this.form.name}, standard output:\n${tail(this.stdout)}` +
      (this.stderr && `--- and standard error:\n${tail(this.stderr)}`);
  }

  /** Stops reading what it writes. */
  pause() {
    this.#resumed = Promise.withResolvers();
  }

  /** Goes on reading what it writes. */
  resume() {
    this.#resumed.resolve();
  }

  /** Closes standard output at this end. */
  async abandon() {
    await this.#reader.cancel();
  }

  /** The log lines written so far. */
  get lines(): Record<string, unknown>[] {
    return this.stdout.split("\n").slice(0, -1).map((line) => JSON.parse(line));
  }

  /** Waits until standard output matches. */
  async waitForOutput(pattern: RegExp): Promise<RegExpExecArray> {
    while (true) {
      const match = pattern.exec(this.stdout);
      if (match) return match;
      if (this.#hasEnded) throw new Error(`it ended without ${pattern} on standard output`);
      await waitFor(this.#arrived.promise, `${pattern} on standard output`);
    }
  }

  /** Sends a signal to the service, inside its container where it has one. */
  kill(signal: Deno.Signal) {
    this.#child.kill(signal); // docker hands it on
  }

  /** The number of the service's process, seen from outside its container. */
  async readPid(): Promise<number> {
    if (!this.form.isImage) return this.#child.pid;
    return Number(await docker("inspect", "--format", "{{.State.Pid}}", this.#container));
  }

  /** Waits for the end and gives the exit code. */
  async waitForCode(): Promise<number> {
    const { code, signal } = await waitFor(this.#child.status, "the end of the service");
    if (signal !== null) throw new Error(`ended by ${signal} instead of an exit code`);
    this.resume();
    await this.#ended;
    return code;
  }

  /** Kills the service with SIGKILL. */
  async destroy() {
    if (this.form.isImage) await docker("rm", "--force", this.#container);
    try {
      this.#child.kill("SIGKILL");
    } catch {
      // it ended by itself meanwhile
    }
    this.resume();
    await this.#ended;
  }

  async [Symbol.asyncDispose]() {
    if (this.#hasEnded) return;
    // a docker client that is signalled three times leaves its container behind
    if (this.form.isImage) return await this.destroy();
    try {
      // two signals end it at once, and yet so that the coverage it saw is written
      this.kill("SIGTERM");
      this.kill("SIGINT");
    } catch {
      // it ended by itself meanwhile
    }
    this.resume();
    const timer = setTimeout(() => this.destroy(), 5000);
    await this.#ended;
    clearTimeout(timer);
  }
}

/** A service that listens. */
export type RunningService = Run & { readonly port: number; readonly url: string };

/** Runs the service with these variables and arguments, whatever comes of it. */
export async function launch(
  form: Form,
  env: Record<string, string> = {},
  args: readonly string[] = [],
  limits: Limits = {},
): Promise<Run> {
  const container = `devops-info-service-${crypto.randomUUID()}`;
  const [program, ...rest] = await form.command(env, container, limits);
  const inherited = Object.entries(Deno.env.toObject()).filter(([name]) => !(name in DEFAULTS));
  const forgetContainer = form.isImage ? atExit(`docker rm --force ${container}`) : undefined;
  const child = new Deno.Command(program!, {
    args: [...rest, ...args],
    clearEnv: true,
    env: { ...Object.fromEntries(inherited), ...env },
    cwd: pathOf(""),
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    detached: true,
  }).spawn();
  const forgetProcess = atExit(`kill -s KILL -- -${child.pid}`);
  const run = new Run(form, child, container, () => {
    forgetProcess();
    forgetContainer?.();
  });
  runs.push(run);
  return run;
}

/** Runs a service on a free port of 127.0.0.1 and waits until it listens. */
export async function start(
  form: Form,
  env: Record<string, string> = {},
  limits: Limits = {},
): Promise<RunningService> {
  const run = await launch(form, { HOST: "127.0.0.1", PORT: "0", ...env }, [], limits);
  try {
    const [, port] = await run.waitForOutput(/listening.*?port"?[:=](\d+)/);
    return Object.assign(run, { port: Number(port), url: `http://127.0.0.1:${port}` });
  } catch (error) {
    await run[Symbol.asyncDispose]();
    throw error;
  }
}

const shared = new Map<Form, Promise<RunningService>>();

/** A service of this form, without variables, for all tests of a file that leave it as it is. */
export async function share(form: Form): Promise<RunningService> {
  if (!shared.has(form)) shared.set(form, start(form));
  const service = await shared.get(form)!;
  runs.push(service);
  return service;
}

async function endShared() {
  for (const service of shared.values()) await (await service)[Symbol.asyncDispose]();
  shared.clear();
}

/** What a process holds, from /proc. */
export async function readResources(run: Run) {
  const pid = await run.readPid();
  const descriptors = [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
  return { megabytes: Math.round(readMegabytes(pid)), descriptors };
}

/** The memory that a process holds. */
export function readMegabytes(pid: number): number {
  const status = Deno.readTextFileSync(`/proc/${pid}/status`);
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)![1]) / 1024;
}

// ---- What more than one document's proof needs ----

/** The paths of the endpoints, and one that is none. */
export const PATHS = ["/", "/health"];
export const OTHER_PATH = "/nowhere";

/** The keys of `GET /` in their order. */
export const INFORMATION_KEYS = {
  service: ["name", "version", "description", "framework"],
  system: ["hostname", "platform", "platform_version", "architecture", "cpu_count", "deno_version"],
  runtime: ["uptime_seconds", "uptime_human", "current_time", "timezone"],
  request: ["client_ip", "user_agent", "method", "path"],
};

/** A time as the service writes it. */
export const RFC_3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

export const ALLOW = "GET, HEAD, OPTIONS";

/** Hosts that are valid, and such that get 400. */
export const GOOD_HOSTS = [
  "x",
  "x:80",
  "x:65535",
  "x:0",
  "x:",
  "%41",
  "[::1]",
  "[::1]:5000",
  "xn--caf-dma.example",
  "a_b",
];
export const BAD_HOSTS = [
  ...[
    "x/health?",
    "x?",
    "x#",
    "user@x",
    "user:password@x",
    "a b",
    "x:80:80",
    "x:port",
    "[::1",
    "::1",
  ],
  ...["x/health", "%41/x", "x<y", "x:99999", "x:65536", "x:123456", "[::1]:99999", "[::1]x"],
  ...["http://x", "[zz]", "[:::::]", "[]", "a%zz", ":80", "", "\xe9", "\\x"],
];

/** What a browser accepts. */
export const BROWSER_ACCEPT =
  "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";

/** User agents that try to be markup. */
export const HOSTILE_AGENTS = [
  "<script>alert(1)</script>",
  `"><img src=x onerror=alert(1)>`,
  "</dd></dl><style>body{display:none}</style>",
  "&lt;b&gt; ' &#x3c;",
];
