/** A run of the service, and the tests that show what it wrote where they fail. */
import { parseConfig } from "../main.ts";
import type { Form, Limits } from "./forms.ts";
import { docker, inspect, spawn } from "./programs.ts";
import { waitFor } from "./waiting.ts";

/** What the configuration is when no variable is set. */
export const DEFAULTS = parseConfig({ get: () => undefined }, false);

// ---- Tests ----

/** The runs of the present test, whose output a failure shows. */
const runs: Run[] = [];
const shared = new Map<Form, Promise<RunningService>>();

Deno.test.beforeEach(() => void runs.splice(0));
Deno.test.afterAll(async () => {
  for (const service of shared.values()) await (await service)[Symbol.asyncDispose]();
});

type Proof = (context: Deno.TestContext) => Promise<void> | void;
type Reason = string | false | undefined;

interface Options {
  /** Why it cannot run here; the first reason that is not empty leaves it out, by name. */
  readonly unless?: Reason | readonly Reason[];
}

/**
 * Describes a test for `Deno.test`, or a row of it for `context.step`, which are called in the
 * test's own file so that a failure is headed by its line. The error shows what the service wrote.
 *
 * @param name what holds
 * @param prove the proof
 * @param options why it may be left out
 */
export function spec(name: string, prove: Proof, { unless }: Options = {}) {
  const reason = [unless].flat().find(Boolean);
  return {
    name: reason ? `${name} [left out: ${reason}]` : name,
    ignore: Boolean(reason),
    sanitizeOps: false, // tests share a service
    sanitizeResources: false,
    async fn(context: Deno.TestContext) {
      try {
        await prove(context);
      } catch (error) {
        if (error instanceof Error) error.message += runs.map((run) => run.describe()).join("");
        throw error;
      }
    },
  };
}

/** A `spec` whose names begin with a form's. */
export function bindSpec(form: Form): typeof spec {
  return (name, prove, options) => spec(`${form.name}: ${name}`, prove, options);
}

/** Says in a test that the rest of it is left out, and why. */
export async function leaveOut(context: Deno.TestContext, reason: string) {
  await context.step(spec("the rest", () => {}, { unless: reason }));
}

// ---- A run of the service ----

/** Milliseconds between two signals that both count, on a busy machine, too. */
export const SIGNAL_PAUSE = 300;

/** One run of the service, made by `launch` or `start`. Leaving its scope ends it. */
export class Run implements AsyncDisposable {
  /** What it wrote so far. */
  stdout = "";
  stderr = "";
  readonly form: Form;
  readonly #child: Deno.ChildProcess;
  readonly #container: string;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #ended: Promise<void>;
  #hasEnded = false;
  #arrived = Promise.withResolvers<void>();
  #resumed = Promise.withResolvers<void>();

  constructor(form: Form, child: Deno.ChildProcess, container: string) {
    this.form = form;
    this.#child = child;
    this.#container = container;
    this.#reader = child.stdout.getReader();
    this.#resumed.resolve();
    const reading = this.#read("stdout", this.#reader);
    const readingErrors = this.#read("stderr", child.stderr.getReader());
    this.#ended = Promise.all([child.status, reading, readingErrors]).then(() => {
      this.#hasEnded = true;
      this.#arrived.resolve();
    });
  }

  async #read(name: "stdout" | "stderr", reader: ReadableStreamDefaultReader<Uint8Array>) {
    const decoder = new TextDecoder();
    for (let chunk; !(chunk = await reader.read()).done;) {
      this[name] += decoder.decode(chunk.value, { stream: true });
      this.#arrived.resolve();
      this.#arrived = Promise.withResolvers();
      await this.#resumed.promise;
    }
  }

  /** What a failed test shows of it. */
  describe(): string {
    const [output, errors] = [this.stdout, this.stderr].map((text) => text.slice(-2000));
    return `\n--- ${this.form.name}, standard output:\n${output}--- standard error:\n${errors}`;
  }

  /** Stops reading what it writes, until `resume`. */
  pause() {
    this.#resumed = Promise.withResolvers();
  }

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
    return this.form.isImage ? await inspect(this.#container, ".State.Pid") : this.#child.pid;
  }

  /** Waits for the end and gives the exit code. */
  async waitForCode(): Promise<number> {
    const { code, signal } = await waitFor(this.#child.status, "the end of the service");
    if (signal !== null) throw new Error(`ended by ${signal} instead of an exit code`);
    this.resume();
    await this.#ended;
    return code;
  }

  /** Ends it, by a second signal where one does not, so that the coverage it saw is written. */
  async [Symbol.asyncDispose]() {
    this.resume();
    if (this.form.isImage && !this.#hasEnded) await docker("rm", "--force", this.#container);
    for (let tries = 0; !this.#hasEnded; tries++) {
      try {
        this.kill(tries < 30 ? "SIGTERM" : "SIGKILL");
      } catch {
        // it ended by itself meanwhile
      }
      await waitFor(this.#ended, "its end", 0.2).catch(() => {});
    }
  }
}

export type RunningService = Run & { readonly port: number; readonly url: string };

/** What a run gets of the environment: other variables might change what it does. */
const INHERITED = new Set(["PATH", "HOME", "DENO_DIR", "DENO_COVERAGE_DIR", "DOCKER_HOST"]);

/** Runs the service with these variables and arguments, whatever comes of it. */
export async function launch(
  form: Form,
  env: Record<string, string> = {},
  args: readonly string[] = [],
  limits: Limits = {},
): Promise<Run> {
  const container = `devops-info-service-${crypto.randomUUID()}`;
  const command = [...await form.command(env, container, limits), ...args];
  const inherited = Object.entries(Deno.env.toObject()).filter(([name]) => INHERITED.has(name));
  const child = spawn(command, { ...Object.fromEntries(inherited), ...env });
  const run = new Run(form, child, container);
  runs.push(run);
  return run;
}

/** Runs a service on a free port of 127.0.0.1 and waits until it listens. */
export async function start(
  form: Form,
  env: Record<string, string> = {},
  limits: Limits = {},
): Promise<RunningService> {
  const given = { HOST: "127.0.0.1", PORT: "0", ...env };
  await using stack = new AsyncDisposableStack();
  const run = stack.use(await launch(form, given, [], limits));
  const [, port] = await run.waitForOutput(/listening.*?port"?[:=](\d+)/);
  stack.move();
  return Object.assign(run, { port: Number(port), url: `http://127.0.0.1:${port}` });
}

/** A service of this form, without variables, for all tests of a file that leave it as it is. */
export async function share(form: Form): Promise<RunningService> {
  if (!shared.has(form)) shared.set(form, start(form));
  const service = await shared.get(form)!;
  if (!runs.includes(service)) runs.push(service);
  return service;
}

/** What a run holds, from /proc. */
export async function readResources(run: Run) {
  const pid = await run.readPid();
  const kilobytes = /^VmRSS:\s+(\d+)/m.exec(Deno.readTextFileSync(`/proc/${pid}/status`))![1];
  const descriptors = [...Deno.readDirSync(`/proc/${pid}/fd`)].length;
  return { megabytes: Math.round(Number(kilobytes) / 1024), descriptors };
}
