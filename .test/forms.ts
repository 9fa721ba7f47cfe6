/**
 * The forms of the service: its source, and what the environment names.
 *
 * `EXECUTABLE` and `IMAGE` name an executable and an image to test beside the source, `ARM64_IMAGE` an
 * image that Docker emulates, `BASE_IMAGE` one without Deno, where this Deno runs the source. `FULL=1`
 * gives what takes long its full size, as `.ci/run` does.
 *
 * @module
 */
import project from "../deno.json" with { type: "json" };
import { pathOf, readOutput } from "./programs.ts";

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
  readonly isEmulated: boolean;
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
    isEmulated: false,
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

/** How an image is run, and how the README says to. */
export const HARDENED =
  "--read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 64".split(" ");

/** The memory of a container, where a test does not say it: half of what the documents advise. */
export const IMAGE_MEMORY = "128m";

/** The form of an image; a platform says that Docker emulates it. */
export function makeImageForm(name: string, image: string, platform?: string): Form {
  return {
    name,
    isImage: true,
    isEmulated: platform !== undefined,
    command: (env, container, { descriptors, memory = IMAGE_MEMORY }) =>
      Promise.resolve([
        ...["docker", "run", "--rm", "--name", container, "--network", "host", ...HARDENED],
        ...(descriptors ? ["--ulimit", `nofile=${descriptors}`] : []),
        // an emulator takes memory beyond any limit
        ...(platform ? ["--platform", platform] : ["--memory", memory]),
        ...Object.entries(env).flatMap(([name, value]) => ["--env", `${name}=${value}`]),
        image,
      ]),
  };
}

let sourceCommand: Promise<string[]> | undefined;

/** What `deno task start` runs. */
async function readSourceCommand(): Promise<string[]> {
  const std = await readOutput([Deno.execPath(), "task", "-q", "std"]);
  const command = project.tasks.start.command.replace("$(deno task -q std)", std);
  const [_deno, ...words] = command.split(/ +/).filter((word) => word !== "$WATCH");
  return [Deno.execPath(), ...words];
}

/** The service run from its source. */
export const SOURCE = makeProcessForm("source", () => sourceCommand ??= readSourceCommand());

/** The form of the source in an image without Deno, by the Deno that runs the tests. */
function makeMountedForm(name: string, image: string): Form {
  const form = makeImageForm(name, image);
  return {
    ...form,
    async command(...run) {
      const docker = await form.command(...run);
      const [_deno, ...source] = await (sourceCommand ??= readSourceCommand());
      const { denoDir } = JSON.parse(await readOutput([Deno.execPath(), "info", "--json"]));
      const mounts = { "/deno": Deno.execPath(), "/cache": denoDir, "/service": pathOf("") };
      const options = Object.entries(mounts).flatMap(([to, from]) => ["-v", `${from}:${to}:ro`]);
      options.push("--env", "DENO_DIR=/cache", "--workdir", "/service");
      return [...docker.slice(0, -1), ...options, image, "/deno", ...source];
    },
  };
}

export const IMAGE = Deno.env.get("IMAGE");
export const ARM64_IMAGE = Deno.env.get("ARM64_IMAGE");
const BASE_IMAGE = Deno.env.get("BASE_IMAGE");
const EXECUTABLE = Deno.env.get("EXECUTABLE");

export const FORMS: readonly Form[] = [
  SOURCE,
  ...(EXECUTABLE ? [makeProcessForm("executable", () => [EXECUTABLE])] : []),
  ...(IMAGE ? [makeImageForm("image", IMAGE)] : []),
];

/** The forms that are held to the contract: those, and two that prove no more than that. */
export const CONTRACT_FORMS: readonly Form[] = [
  ...FORMS,
  ...(BASE_IMAGE ? [makeMountedForm(`Deno ${Deno.version.deno} on the base`, BASE_IMAGE)] : []),
  ...(ARM64_IMAGE ? [makeImageForm("arm64 image", ARM64_IMAGE, "linux/arm64")] : []),
];
