/** Other programs, and temporary files. */
import { waitFor } from "./waiting.ts";

// Deno's `fetch` sends even a request to 127.0.0.1 to the proxy that HTTP_PROXY names
Deno.env.set("NO_PROXY", `localhost,127.0.0.1,::1,${Deno.env.get("NO_PROXY") ?? ""}`);

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

const temporary: string[] = [];

addEventListener("unload", () => {
  for (const folder of temporary) {
    try {
      Deno.removeSync(folder, { recursive: true });
    } catch {
      // what was killed still writes: the system's own cleaning gets it
    }
  }
});

/** A path for a temporary file or folder, which is gone when the tests of a file are. */
export function makeTempPath(name: string): string {
  const folder = Deno.makeTempDirSync({ prefix: "devops-info-service-" });
  temporary.push(folder);
  return `${folder}/${name}`;
}

type Env = Record<string, string>;

/** Starts a program in the project's folder, with these variables alone. */
export function spawn(command: readonly string[], env: Env, stdin: "null" | "piped" = "null") {
  const [program, ...args] = command;
  const streams = { stdin, stdout: "piped", stderr: "piped" } as const;
  const options = { args, clearEnv: true, env, cwd: pathOf(""), ...streams };
  return new Deno.Command(program!, options).spawn();
}

/** Runs a program to its end, whatever the end is. `input` is what it reads. */
export async function runProgram(command: readonly string[], { env = {} as Env, input = "" } = {}) {
  const { DENO_COVERAGE_DIR: _, ...inherited } = Deno.env.toObject(); // the service's alone counts
  await using child = spawn(command, { ...inherited, ...env }, "piped");
  await new Blob([input]).stream().pipeTo(child.stdin).catch(() => {}); // it may not read all
  const output = await waitFor(child.output(), `the end of ${command.join(" ")}`, 120);
  const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code: output.code, stdout: decode(output.stdout), stderr: decode(output.stderr) };
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
