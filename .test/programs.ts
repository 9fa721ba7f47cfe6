/** Other programs, temporary files, and the guard that leaves nothing of them behind. */
import { waitFor } from "./waiting.ts";

export function pathOf(file: string): string {
  return `${import.meta.dirname}/../${file}`;
}

export function readText(file: string): string {
  return Deno.readTextFileSync(pathOf(file));
}

export function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/** Why a program cannot be run here; nothing when it can. */
export function lacks(program: string): string | undefined {
  const folders = `${Deno.env.get("PATH")}:/usr/sbin`.split(":");
  const isThere = folders.some((folder) => isFile(`${folder}/${program}`));
  return isThere ? undefined : `${program} is not installed`;
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

Deno.test.beforeAll(() => void startGuard());
Deno.test.afterAll(endGuard);

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

/** Ends the guard, and with it all that is left. A file of tests does this by itself. */
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

type Env = Record<string, string>;

/** Starts a program in the project's folder. It is killed when this process ends before `forget`. */
export function spawn(command: readonly string[], env: Env, stdin: "null" | "piped" = "null") {
  const [program, ...args] = command;
  const streams = { stdin, stdout: "piped", stderr: "piped" } as const;
  const options = { args, clearEnv: true, env, cwd: pathOf(""), detached: true, ...streams };
  const child = new Deno.Command(program!, options).spawn();
  return { child, forget: atExit(`kill -s KILL -- -${child.pid}`) };
}

/** Runs a program to its end, whatever the end is. `input` is what it reads. */
export async function runProgram(command: readonly string[], { env = {} as Env, input = "" } = {}) {
  const { DENO_COVERAGE_DIR: _, ...inherited } = Deno.env.toObject(); // the service's alone counts
  const { child, forget } = spawn(command, { ...inherited, ...env }, "piped");
  try {
    await new Blob([input]).stream().pipeTo(child.stdin).catch(() => {}); // it may not read all
    const output = await waitFor(child.output(), `the end of ${command.join(" ")}`, 120);
    const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
    return { code: output.code, stdout: decode(output.stdout), stderr: decode(output.stderr) };
  } finally {
    forget();
  }
}

/** Runs a program that must succeed and gives what it prints. */
export async function readOutput(...call: Parameters<typeof runProgram>): Promise<string> {
  const { code, stdout, stderr } = await runProgram(...call);
  if (code !== 0) throw new Error(`${call[0].join(" ")}: exit code ${code}: ${stdout}${stderr}`);
  return stdout.trim();
}

export function docker(...args: string[]): Promise<string> {
  return readOutput(["docker", ...args]);
}

/** A part of what Docker knows of a container or an image: `inspect("IMAGE", ".Config.User")`. */
export async function inspect(name: string, part: string) {
  return JSON.parse(await docker("inspect", "--format", `{{json ${part}}}`, name));
}

/**
 * Runs a program that uses packages from npm: by itself and under a lock of its own, since the
 * project's lock is for std alone. It is type-checked when it has changed.
 *
 * @param file a name in `.test/tools/`, or the path of a program that a test wrote
 * @param input it gets, as JSON
 * @returns what it prints, from JSON; nothing when its packages cannot be had
 */
// deno-lint-ignore no-explicit-any -- each tool prints a shape of its own
export async function runTool(file: string, input: unknown): Promise<any> {
  const tools = pathOf(".test/tools");
  const flags = ["--quiet", "--no-config", "--frozen", `--lock=${tools}/deno.lock`, "--check"];
  const program = file.startsWith("/") ? file : `${tools}/${file}`;
  const command = [Deno.execPath(), "run", "--allow-all", ...flags, program];
  const { code, stdout, stderr } = await runProgram(command, { input: JSON.stringify(input) });
  if (code === 0) return JSON.parse(stdout || "null");
  if (stderr.includes("error sending request")) return undefined;
  throw new Error(`${file}: exit code ${code}: ${stderr}`);
}
