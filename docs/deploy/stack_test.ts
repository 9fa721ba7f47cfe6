/**
 * The proof of `stack.yaml`: under load, Swarm replaces tasks and no request is lost.
 *
 * HAProxy finds the tasks by Docker's DNS. So it runs in the network of a container beside them.
 * Clients come by a Unix socket. The published port has no part: it needs a kernel with IPVS.
 */
import { assertEquals, assertGreater } from "@std/assert";
import { IMAGE, makeProcessForm } from "../../.test/forms.ts";
import { docker, inspect, lacks, makeTempPath } from "../../.test/programs.ts";
import { readOutput, readText, runTool } from "../../.test/programs.ts";
import { launch, leaveOut, spec } from "../../.test/run.ts";
import { sleep, waitUntil } from "../../.test/waiting.ts";

// deno-lint-ignore no-explicit-any -- the shape is Compose's
type Stack = any;

const LACKS_ROOT = Deno.uid() !== 0 && "only root may enter the network of a container";
const NAME = "devops-info-service-stack";
const SERVICE = `${NAME}_web`;
const TASKS = `label=com.docker.swarm.service.name=${SERVICE}`;
const NEIGHBOUR = `${NAME}-neighbour`;
const NEXT_IMAGE = `${NAME}:next`;
/** An update takes half a minute; a busy machine needs more. */
const PATIENCE_SECONDS = 240;

/** Makes this machine a swarm. Leaving the scope ends it, and all that runs in it. */
async function initSwarm(): Promise<AsyncDisposable> {
  await docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1");
  const cleanUp = `docker rm --force ${NEIGHBOUR}
docker swarm leave --force
docker rm --force $(docker ps --all --quiet --filter ${TASKS}) # Swarm does it later
docker image rm ${NEXT_IMAGE}
docker network rm docker_gwbridge # which Swarm leaves behind
true`;
  return { [Symbol.asyncDispose]: async () => void await readOutput(["sh", "-c", cleanUp]) };
}

/** Deploys the stack of a parsed file, with as few changes as the test needs. */
async function deploy(stack: Stack, image: string, environment: Record<string, string> = {}) {
  const { services: { web: { ports: _, ...web } } } = structuredClone(stack);
  web.deploy.endpoint_mode = "dnsrr"; // Docker's DNS tells the addresses of the tasks
  // more often, which saves half a minute a case; and longer, since a busy machine is not unhealthy
  web.healthcheck = { interval: "2s", retries: 4, timeout: "20s" };
  Object.assign(web.environment, environment);
  const file = makeTempPath("stack.json");
  const networks = { default: { attachable: true } }; // for the neighbour
  Deno.writeTextFileSync(file, JSON.stringify({ networks, services: { web } }));
  const command = ["docker", "stack", "deploy", "--resolve-image", "never", "-c", file, NAME];
  await readOutput(command, { env: { IMAGE: image } });
}

/** The healthy tasks, each by container and image. */
async function listHealthy(): Promise<string[]> {
  await sleep(200); // in a wait, Docker's client would keep a processor busy
  const filters = ["--filter", TASKS, "--filter", "health=healthy"];
  const list = await docker("ps", ...filters, "--format", "{{.ID}} {{.Image}}");
  return list.split("\n").filter(Boolean);
}

function waitForTasks(isRight: (task: string) => boolean = () => true): Promise<string[]> {
  const areRight = (tasks: string[]) => tasks.length === 3 && tasks.every(isRight);
  return waitUntil("three healthy tasks", listHealthy, areRight, PATIENCE_SECONDS);
}

/** Waits for the end of an update, and gives the most tasks that were healthy at once. */
async function waitForUpdate(end: string): Promise<number> {
  let most = 0;
  const readState = async () => {
    most = Math.max(most, (await listHealthy()).length);
    return (await inspect(SERVICE, ".UpdateStatus"))?.State;
  };
  await waitUntil(`an update ${end}`, readState, (state) => state === end, PATIENCE_SECONDS);
  return most;
}

/** Starts HAProxy, which hides no failure, beside the tasks. */
async function startBalancer(socket: string) {
  const network = `${NAME}_default`;
  await docker("run", "--detach", "--name", NEIGHBOUR, "--network", network, IMAGE!);
  const pid = String(await inspect(NEIGHBOUR, ".State.Pid"));
  const configuration = `defaults
  mode http
  timeout connect 1s
  timeout client 10s
  timeout server 10s
  timeout check 5s
  retries 0
resolvers docker
  nameserver dns 127.0.0.11:53
  timeout resolve 500ms
  hold valid 1s
listen web
  bind unix@${socket}
  option httpchk GET /health
  default-server check inter 500ms fall 2 rise 1
  server-template web 8 tasks.web:5000 resolvers docker init-addr none
`;
  const file = makeTempPath("haproxy.cfg");
  Deno.writeTextFileSync(file, configuration);
  const command = ["nsenter", "--target", pid, "--net", "haproxy", "-db", "-f", file];
  return await launch(makeProcessForm("HAProxy", () => command));
}

/** Six clients that send request after request, three of them on connections that they keep. */
function startLoad(path: string) {
  let isRunning = true;
  const seen = { answers: 0, failures: [] as string[] };
  const send = async (_: unknown, n: number) => {
    const poolMaxIdlePerHost = n % 2; // 0: a connection for each request
    using client = Deno.createHttpClient({
      proxy: { transport: "unix", path },
      poolMaxIdlePerHost,
    });
    while (isRunning) {
      const answer = await fetch("http://x", { client }).then((answer) => answer.text(), String);
      if (answer.includes('"endpoints"')) seen.answers++;
      else seen.failures.push(answer);
      await sleep(10); // the tasks and their probes need the processor, too
    }
  };
  const clients = Array.from(Array(6), send);
  const stop = async () => {
    isRunning = false;
    await Promise.all(clients);
  };
  return { seen, [Symbol.asyncDispose]: stop };
}

// ---- What Swarm does meanwhile ----

async function update(stack: Stack) {
  await deploy(stack, NEXT_IMAGE);
  assertGreater(await waitForUpdate("completed"), 3, "a new task starts before the old one ends");
  await waitForTasks((task) => task.endsWith(NEXT_IMAGE));
}

async function signalTask(signal: string) {
  const [id = ""] = (await listHealthy())[0]!.split(" ");
  await docker("kill", "--signal", signal, id);
  await waitForTasks((task) => !task.startsWith(id));
}

async function updateInVain(stack: Stack) {
  const before = await listHealthy();
  await deploy(stack, NEXT_IMAGE, { PORT: "http" });
  await waitForUpdate("rollback_completed");
  assertEquals(await waitForTasks(), before);
}

const CASES: Record<string, (stack: Stack) => Promise<void>> = {
  "while all tasks are updated": update,
  "while a task that is unhealthy is replaced": () => signalTask("SIGUSR2"),
  "while a task that was killed is replaced": () => signalTask("SIGKILL"),
  "while an update that cannot start is rolled back": updateInVain,
};

Deno.test(spec(
  "image: a stack on Swarm loses no request",
  async (context) => {
    const state = await docker("info", "--format", "{{.Swarm.LocalNodeState}}");
    if (state !== "inactive") return await leaveOut(context, `this machine's swarm is ${state}`);
    const [stack] = await runTool("parse_yaml.ts", readText("docs/deploy/stack.yaml")) ?? [];
    if (!stack) return await leaveOut(context, "yaml cannot be had from npm");
    await using _swarm = await initSwarm();
    await docker("tag", IMAGE!, NEXT_IMAGE);
    await deploy(stack, IMAGE!);
    await waitForTasks();
    const socket = makeTempPath("haproxy.sock");
    await using _balancer = await startBalancer(socket);
    await using load = startLoad(socket);
    await waitUntil("an answer through HAProxy", () => load.seen.answers);
    for (const [name, happen] of Object.entries(CASES)) {
      await context.step(spec(name, async () => {
        Object.assign(load.seen, { answers: 0, failures: [] });
        await happen(stack);
        const { answers, failures } = load.seen;
        console.log(`${failures.length} of ${answers + failures.length} requests failed`);
        assertGreater(answers, 100);
        if (!name.includes("killed")) assertEquals(failures, []); // its requests end with it
      }));
    }
  },
  { unless: [!IMAGE && "IMAGE names none", lacks("haproxy"), lacks("nsenter"), LACKS_ROOT] },
));
