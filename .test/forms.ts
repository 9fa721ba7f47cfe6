/**
 * The forms of the service: its source, and what the environment names.
 *
 * `EXECUTABLE` and `IMAGE` name an executable and an image to test beside the source. `FULL=1`
 * gives what takes long its full size, as `.ci/run` does.
 *
 * @module
 */
import project from "../deno.json" with { type: "json" };
import { readOutput } from "./programs.ts";

/** Whether what takes long runs at its full size. */
export const IS_FULL = Boolean(Deno.env.get("FULL"));

export interface Limits {
  readonly descriptors?: number;
  /** Of a container; a process of its own has none. */
  readonly memory?: string;
}

/** A way to run the service. */
export interface Form {
  readonly name: string;
  readonly isImage: boolean;
  /** Program and arguments that run it with these variables and limits. */
  command(env: Record<string, string>, container: string, limits: Limits): Promise<string[]>;
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
      if (!descriptors) return command;
      return ["sh", "-c", `ulimit -n ${descriptors} && exec "$0" "$@"`, ...command];
    },
  };
}

/** The form whose command is changed, to run it behind a shell for one. */
export function wrapForm(form: Form, wrap: (command: string[]) => string[]): Form {
  return { ...form, command: async (...run) => wrap(await form.command(...run)) };
}

/** How an image is run, as compose.yaml has it. */
export const HARDENED =
  "--read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 64".split(" ");

/** The memory of a container, where a test does not say it: half of what the documents advise. */
export const IMAGE_MEMORY = "128m";

export function makeImageForm(name: string, image: string): Form {
  return {
    name,
    isImage: true,
    command: (env, container, { descriptors, memory = IMAGE_MEMORY }) =>
      Promise.resolve([
        ...["docker", "run", "--rm", "--name", container, "--network", "host", ...HARDENED],
        ...(descriptors ? ["--ulimit", `nofile=${descriptors}`] : []),
        ...["--memory", memory],
        ...Object.entries(env).flatMap(([name, value]) => ["--env", `${name}=${value}`]),
        image,
      ]),
  };
}

/** What `deno task start` runs, by the Deno that runs the tests. */
async function readSourceCommand(): Promise<string[]> {
  const std = await readOutput([Deno.execPath(), "task", "-q", "std"]);
  const [, command = ""] = /\bdeno (run .*)$/.exec(project.tasks.start.command) ?? [];
  const words = command.replace("$(deno task -q std)", std).split(/ +/);
  return [Deno.execPath(), ...words.filter((word) => !word.startsWith("$"))];
}

let sourceCommand: Promise<string[]> | undefined;

/** The service run from its source. */
export const SOURCE = makeProcessForm("source", () => sourceCommand ??= readSourceCommand());

export const IMAGE = Deno.env.get("IMAGE");
const EXECUTABLE = Deno.env.get("EXECUTABLE");

export const FORMS: readonly Form[] = [
  SOURCE,
  ...(EXECUTABLE ? [makeProcessForm("executable", () => [EXECUTABLE])] : []),
  ...(IMAGE ? [makeImageForm("image", IMAGE)] : []),
];
