/** The proof of what stands here: it is valid, and agrees with the service. */
import { assertArrayIncludes, assertEquals, assertGreater } from "@std/assert";
import { assertLess, assertObjectMatch } from "@std/assert";
import project from "../../deno.json" with { type: "json" };
import { IMAGE } from "../../.test/forms.ts";
import { inspect, makeTempPath, readOutput, readText, runTool } from "../../.test/programs.ts";
import { findFreePort, probe } from "../../.test/requests.ts";
import { DEFAULTS, leaveOut, spec } from "../../.test/run.ts";

// deno-lint-ignore no-explicit-any -- the shapes are Kubernetes' and Compose's
type Node = any;
const FILES = ["compose", "stack", "kubernetes", "autoscaler", "network-policy"];
const TEXTS = FILES.map((file) => readText(`docs/deploy/${file}.yaml`));
const DOCUMENTS: Node[] | undefined = await runTool("parse_yaml.ts", TEXTS.join("\n---\n"));
const [compose, stack, ...manifests] = DOCUMENTS ?? [];
const [deployment, service, budget, autoscaler, policy] = manifests;
const pod = deployment?.spec.template.spec;
const NO_YAML = !DOCUMENTS && "yaml cannot be had from npm";

/** What each way to deploy says of the same. */
function readWays(): Record<string, Record<string, Node>> {
  const { environment, stop_grace_period, mem_limit } = compose.services.web;
  const { web } = stack.services;
  const [container] = pod.containers;
  return {
    Compose: {
      names: environment,
      drain: 30, // the longest that operations.md advises
      grace: stop_grace_period,
      memory: mem_limit,
    },
    Swarm: {
      names: Object.keys(web.environment),
      drain: web.environment.DRAIN_SECONDS,
      grace: web.stop_grace_period,
      memory: web.deploy.resources.limits.memory,
    },
    Kubernetes: {
      names: container.env.map(({ name }: Node) => name),
      drain: container.env.find(({ name }: Node) => name === "DRAIN_SECONDS").value,
      grace: pod.terminationGracePeriodSeconds,
      memory: container.resources.limits.memory,
    },
  };
}

Deno.test(spec("each way sets variables that exist, allows time to stop, the same memory", () => {
  for (const [way, { names, drain, grace, memory }] of Object.entries(readWays())) {
    assertEquals(names.filter((name: string) => !(name in DEFAULTS)), [], way);
    assertGreater(parseInt(grace), Number(drain) + DEFAULTS.SHUTDOWN_SECONDS + 1, way);
    assertEquals(parseInt(memory), 256, way);
  }
}, { unless: NO_YAML }));

Deno.test(spec("the manifests are what their kinds allow", async (context) => {
  const file = makeTempPath("manifests.ts");
  const program = manifests.map(({ apiVersion, kind, ...rest }, n) => {
    const module = apiVersion === "v1" ? "core/v1" : apiVersion.replace(".k8s.io", "");
    return `import type { ${kind} as K${n} } from "npm:kubernetes-types@1.30.0/${module}.d.ts";
      const _${n}: K${n} = ${JSON.stringify({ apiVersion, kind, ...rest })};`;
  });
  Deno.writeTextFileSync(file, program.join("\n"));
  const isChecked = await runTool(file, null) !== undefined;
  if (!isChecked) await leaveOut(context, "kubernetes-types cannot be had from npm");
}, { unless: NO_YAML }));

Deno.test(spec("the manifests find the pod, and name the version that is released", () => {
  const { selector, template: { metadata: { labels } } } = deployment.spec;
  const { topologySpreadConstraints: spread, containers: [web] } = pod;
  const selectors = [selector, budget.spec.selector, policy.spec.podSelector];
  selectors.push(...spread.map(({ labelSelector }: Node) => labelSelector));
  for (const { matchLabels } of selectors) assertObjectMatch(labels, matchLabels);
  assertObjectMatch(labels, service.spec.selector);
  const { apiVersion, kind, metadata: { name } } = deployment;
  assertEquals(autoscaler.spec.scaleTargetRef, { apiVersion, kind, name });
  const [{ targetPort }] = service.spec.ports;
  assertEquals(web.ports, [{ name: targetPort, containerPort: DEFAULTS.PORT }]);
  assertEquals(web.image.split(":")[1], project.version);
  assertEquals(labels["app.kubernetes.io/version"], project.version);
}, { unless: NO_YAML }));

Deno.test(spec("Kubernetes asks an unhealthy pod no more before it restarts its container", () => {
  const [{ ports: [port], readinessProbe, livenessProbe, startupProbe }] = pod.containers;
  for (const { httpGet } of [readinessProbe, livenessProbe, startupProbe]) {
    assertEquals(httpGet, { path: "/health", port: port.name });
  }
  const findEnd = (probe: Node) => probe.periodSeconds * probe.failureThreshold;
  assertLess(findEnd(readinessProbe), findEnd(livenessProbe));
  assertGreater(findEnd(startupProbe), 20, "a busy node needs time");
}, { unless: NO_YAML }));

Deno.test(spec("the pod meets the restricted Pod Security Standard, and names no user", () => {
  const { securityContext, containers: [web] } = pod;
  // OpenShift refuses a user that is not of the namespace's range
  assertEquals(securityContext, { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } });
  const capabilities = { drop: ["ALL"] };
  assertObjectMatch(web.securityContext, { allowPrivilegeEscalation: false, capabilities });
}, { unless: NO_YAML }));

Deno.test(spec("image: Compose makes it healthy, hands on variables, and stops it", async () => {
  const project = `devops-info-service-${crypto.randomUUID()}`;
  const env = { PORT: String(findFreePort()), IMAGE: IMAGE!, LOG_LEVEL: "debug" };
  const command = ["docker", "compose", "--file", "docs/deploy/compose.yaml", "--project-name"];
  const compose = (...args: string[]) => readOutput([...command, project, ...args], { env });
  try {
    await compose("up", "--detach", "--no-build", "--wait");
    assertEquals((await probe(Number(env.PORT))).status, 200);
    const container = await compose("ps", "--quiet");
    const { Memory, MemorySwap, ...limits } = await inspect(container, ".HostConfig");
    assertEquals(MemorySwap, Memory, "both together, so no swap");
    assertObjectMatch(limits, { ReadonlyRootfs: true, CapDrop: ["ALL"] });
    assertArrayIncludes(await inspect(container, ".Config.Env"), ["LOG_LEVEL=debug"]);
    await compose("stop");
    assertEquals(await inspect(container, ".State.ExitCode"), 0);
  } finally {
    await compose("down");
  }
}, { unless: !IMAGE && "IMAGE names none" }));
