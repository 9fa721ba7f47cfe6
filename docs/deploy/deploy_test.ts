/** The proof of what stands here: it is valid, and agrees with the service and with itself. */
import { assertEquals, assertGreater, assertLess, assertObjectMatch } from "@std/assert";
import project from "../../deno.json" with { type: "json" };
import { parseConfig } from "../../main.ts";
import { IMAGE } from "../../.test/forms.ts";
import { atExit, docker, inspect, makeTempPath, readOutput } from "../../.test/programs.ts";
import { readText, runTool } from "../../.test/programs.ts";
import { findFreePort, probe } from "../../.test/requests.ts";
import { DEFAULTS, leaveOut, spec } from "../../.test/run.ts";

// deno-lint-ignore no-explicit-any -- the shapes are Kubernetes' and Compose's
type Node = any;
const FILES = ["compose.yaml", "stack.yaml", "kubernetes.yaml", "network-policy.yaml"];
const TEXTS = FILES.map((file) => readText(`docs/deploy/${file}`));
const DOCUMENTS: Node[] | undefined = await runTool("parse_yaml.ts", TEXTS.join("\n---\n"));
const [compose, stack, ...manifests] = DOCUMENTS ?? [];
const [deployment, service, budget, autoscaler, policy] = manifests;
const NO_YAML = !DOCUMENTS && "yaml cannot be had from npm";

/** What each way to deploy says of the same. */
const WAYS: Record<string, () => Record<string, Node>> = {
  Compose() {
    const { environment, stop_grace_period: grace, mem_limit: memory } = compose.services.web;
    return { environment, grace, memory, drain: 30 }; // the longest that operations.md advises
  },
  Swarm() {
    const { environment, stop_grace_period: grace, deploy } = stack.services.web;
    return { environment, grace, memory: deploy.resources.limits.memory };
  },
  Kubernetes() {
    const { containers: [web], terminationGracePeriodSeconds: grace } =
      deployment.spec.template.spec;
    const environment = Object.fromEntries(web.env.map((entry: Node) => [entry.name, entry.value]));
    return { environment, grace, memory: web.resources.limits.memory };
  },
};

for (const [way, read] of Object.entries(WAYS)) {
  Deno.test(spec(`${way} sets variables that exist, and allows time to stop and memory`, () => {
    const { environment, grace, memory, drain } = read();
    assertEquals(Object.keys(environment).filter((name) => !(name in DEFAULTS)), []);
    const get = (name: string) => `${environment[name] ?? ""}`.replace(/^\$\{\w+:-(.*)\}$/, "$1");
    const { DRAIN_SECONDS, SHUTDOWN_SECONDS } = parseConfig({ get }, false);
    assertGreater(parseInt(grace), (drain ?? DRAIN_SECONDS) + SHUTDOWN_SECONDS + 1);
    const [slowClients = ""] = /^.*half requests.*$/m.exec(readText("docs/reliability.md")) ?? [];
    const held = Math.max(...Array.from(slowClients.matchAll(/(\d+) MB/g), ([, n]) => Number(n)));
    assertGreater(parseInt(memory), held);
    assertLess(parseInt(memory), 2 * held);
  }, NO_YAML));
}

Deno.test(spec("the manifests are what their kinds allow", async (context) => {
  const file = makeTempPath("manifests.ts");
  // the validators let unknown fields pass, the types do not, so both are asked
  const program = manifests.map(({ apiVersion, kind, ...rest }, n) => `
    import { type I${kind} as I${n}, ${kind} as C${n} }
      from "npm:kubernetes-models@5.1.0/${apiVersion}/${kind}";
    const o${n}: I${n} = ${JSON.stringify({ apiVersion, kind, ...rest })};
    new C${n}(o${n}).validate();`);
  Deno.writeTextFileSync(file, program.join(""));
  const isValidated = await runTool(file, null) !== undefined;
  if (!isValidated) await leaveOut(context, "kubernetes-models cannot be had from npm");
}, NO_YAML));

Deno.test(spec("the manifests find the pod, and an update takes away none of three", () => {
  const { selector, strategy, template: { metadata: { labels }, spec } } = deployment.spec;
  const { topologySpreadConstraints: spread, containers: [web] } = spec;
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
  assertEquals([autoscaler.spec.minReplicas, strategy.rollingUpdate.maxUnavailable], [3, 0]);
}, NO_YAML));

Deno.test(spec("Kubernetes asks an unhealthy pod no more before it restarts its container", () => {
  const [{ ports: [port], readinessProbe, livenessProbe, startupProbe }] =
    deployment.spec.template.spec.containers;
  for (const { httpGet } of [readinessProbe, livenessProbe, startupProbe]) {
    assertEquals(httpGet, { path: "/health", port: port.name });
  }
  const findEnd = (probe: Node) => probe.periodSeconds * probe.failureThreshold;
  assertLess(findEnd(readinessProbe), findEnd(livenessProbe));
  assertGreater(findEnd(startupProbe), 20, "a busy node needs time");
}, NO_YAML));

Deno.test(spec("the pod has no rights, as the restricted Pod Security Standard has it", () => {
  const capabilities = { drop: ["ALL"] };
  const container = { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities };
  assertObjectMatch(deployment.spec.template.spec, {
    automountServiceAccountToken: false,
    securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } },
    containers: [{ securityContext: container }],
  });
  assertEquals([policy.spec.policyTypes, policy.spec.egress], [["Egress"], []]);
}, NO_YAML));

Deno.test(spec("image: Compose makes it healthy, without rights, and stops it", async () => {
  const project = `devops-info-service-${crypto.randomUUID()}`;
  const PORT = String(findFreePort());
  const command = ["docker", "compose", "--file", "docs/deploy/compose.yaml", "--project-name"];
  const compose = (...args: string[]) =>
    readOutput([...command, project, ...args], { env: { PORT, IMAGE: IMAGE! } });
  const label = `label=com.docker.compose.project=${project}`;
  const forget = atExit(`docker rm --force $(docker ps --all --quiet --filter ${label})
docker network rm ${project}_default`);
  try {
    await compose("up", "--detach", "--no-build", "--wait");
    assertEquals((await probe(Number(PORT))).status, 200);
    const container = await docker("ps", "--quiet", "--filter", label);
    assertObjectMatch(await inspect(container, ".HostConfig"), {
      ReadonlyRootfs: true,
      CapDrop: ["ALL"],
      SecurityOpt: ["no-new-privileges:true"],
      PidsLimit: 64,
      Memory: 256 * 1024 * 1024,
      MemorySwap: 256 * 1024 * 1024, // both together, so no swap
      RestartPolicy: { Name: "unless-stopped" },
    });
    await compose("stop");
    assertEquals(await inspect(container, ".State.ExitCode"), 0);
  } finally {
    await compose("down");
    forget();
  }
}, !IMAGE && "IMAGE names none"));
