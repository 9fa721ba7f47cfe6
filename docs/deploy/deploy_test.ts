/** The proof of what stands here: manifests and Compose are valid, agree with the service, and give it no rights. */
import { assert, assertEquals, assertGreater, assertGreaterOrEqual, assertLess } from "@std/assert";
import {
  atExit,
  DEFAULTS,
  docker,
  findFreePort,
  IMAGE,
  inspect,
  leaveOut,
  makeTempPath,
  pathOf,
  probe,
  readOutput,
  readText,
  runTool,
  test,
} from "../../.ci/harness.ts";
import { parseConfig } from "../../main.ts";
import project from "../../deno.json" with { type: "json" };

// deno-lint-ignore no-explicit-any -- the shapes are Kubernetes' and Compose's
type Node = any;

const CANNOT_PARSE = "yaml cannot be had from npm";
const USER = 65532;

/** The documents of a YAML file; nothing where the parser cannot be had. */
async function parseYaml(file: string): Promise<Node[] | undefined> {
  const output = await runTool(pathOf(".ci/parse_yaml.ts"), readText(file));
  return output && JSON.parse(output);
}

/** The configuration that these variables make; throws where one is not allowed or not ours. */
function parseVariables(variables: Record<string, string>) {
  for (const name of Object.keys(variables)) {
    assert(name in DEFAULTS, `${name} is no variable of ours`);
  }
  return parseConfig({ get: (name) => variables[name] }, false);
}

/** What the service holds after 5,000 half requests, see `reliability.md`. */
const HELD_MEGABYTES = 223;

// ---- Kubernetes ----

const MANIFESTS = "docs/deploy/kubernetes.yaml";
const POLICY = "docs/deploy/network-policy.yaml";
const LABELS = {
  "app.kubernetes.io/name": project.name,
  "app.kubernetes.io/component": "web",
};
const VERSIONED = { ...LABELS, "app.kubernetes.io/version": project.version };

test("the manifests are what their kinds allow", async (context) => {
  const [manifests, policy] = [await parseYaml(MANIFESTS), await parseYaml(POLICY)];
  if (!manifests || !policy) return await leaveOut(context, CANNOT_PARSE);
  const objects = [...manifests, ...policy];
  // the validators let unknown fields pass, the types do not, so both are asked
  const program = makeTempPath("manifests.ts");
  const lines = objects.flatMap((object, n) => {
    const path = `npm:kubernetes-models@5.1.0/${object.apiVersion}/${object.kind}`;
    return [
      `import { type I${object.kind} as I${n}, ${object.kind} as C${n} } from "${path}";`,
      `const o${n}: I${n} = ${JSON.stringify(object)};`,
      `new C${n}(o${n}).validate();`,
    ];
  });
  Deno.writeTextFileSync(program, lines.join("\n"));
  if (await runTool(program, null) === undefined) {
    await leaveOut(context, "kubernetes-models cannot be had from npm");
  }
});

test("the manifests agree with the service, its image and each other", async (context) => {
  const objects = await parseYaml(MANIFESTS);
  if (!objects) return await leaveOut(context, CANNOT_PARSE);
  assertEquals(objects.map(({ kind }) => kind), [
    ...["Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"],
  ]);
  const [deployment, service, budget, autoscaler] = objects;
  for (const { kind, metadata } of objects) {
    assertEquals(metadata, { name: project.name, labels: VERSIONED }, kind);
  }
  const { selector, strategy, template, replicas, minReadySeconds, progressDeadlineSeconds } =
    deployment.spec;
  assertGreater(minReadySeconds, 0, "a pod that fails at once must stop the update");
  assertGreater(progressDeadlineSeconds, 10 * minReadySeconds);
  assertEquals(template.metadata.labels, VERSIONED);
  assertEquals(selector, { matchLabels: LABELS });
  assertEquals(strategy, {
    type: "RollingUpdate",
    rollingUpdate: { maxUnavailable: 0, maxSurge: 1 },
  });
  assertEquals(replicas, undefined, "the autoscaler sets it");

  assertEquals(service.spec, {
    type: "ClusterIP",
    selector: LABELS,
    ports: [{ name: "http", port: 80, targetPort: "http", appProtocol: "http" }],
  });
  assertEquals(budget.spec, {
    maxUnavailable: 1,
    unhealthyPodEvictionPolicy: "AlwaysAllow",
    selector: { matchLabels: LABELS },
  });
  const { scaleTargetRef, minReplicas, maxReplicas, metrics } = autoscaler.spec;
  assertEquals(scaleTargetRef, { apiVersion: "apps/v1", kind: "Deployment", name: project.name });
  assertGreaterOrEqual(minReplicas, 3, "one may be down in an update, and one in a disruption");
  assertGreater(maxReplicas, minReplicas);
  const [{ type, resource }, ...others] = metrics;
  assertEquals([type, resource.name, resource.target.type, others], [
    "Resource",
    "cpu",
    "Utilization",
    [],
  ]);
  assert(
    resource.target.averageUtilization >= 50 && resource.target.averageUtilization < 100,
    "utilization",
  );
});

test("the pod has no rights, and room for what the service holds", async (context) => {
  const [deployment] = await parseYaml(MANIFESTS) ?? [];
  if (!deployment) return await leaveOut(context, CANNOT_PARSE);
  const { containers, ...pod } = deployment.spec.template.spec;
  assertEquals(pod.automountServiceAccountToken, false);
  assertEquals(pod.enableServiceLinks, false);
  assertEquals(pod.securityContext, {
    runAsNonRoot: true,
    runAsUser: USER,
    runAsGroup: USER,
    seccompProfile: { type: "RuntimeDefault" },
  });
  for (const name of ["hostNetwork", "hostPID", "hostIPC", "volumes"]) {
    assertEquals(pod[name], undefined, name);
  }
  const spread = pod.topologySpreadConstraints.map((
    { topologyKey, ...rest }: Node,
  ) => [topologyKey, rest]);
  const rule = {
    maxSkew: 1,
    whenUnsatisfiable: "ScheduleAnyway",
    labelSelector: { matchLabels: LABELS },
    matchLabelKeys: ["pod-template-hash"],
  };
  assertEquals(spread, [["kubernetes.io/hostname", rule], ["topology.kubernetes.io/zone", rule]]);

  assertEquals(containers.length, 1);
  const { image, ports, securityContext, resources } = containers[0];
  assertEquals(image, `ghcr.io/OWNER/${project.name}:${project.version}`);
  assertEquals(ports, [{ name: "http", containerPort: DEFAULTS.PORT }]);
  assertEquals(securityContext, {
    allowPrivilegeEscalation: false,
    readOnlyRootFilesystem: true,
    capabilities: { drop: ["ALL"] },
  });
  const [, limit] = /^(\d+)Mi$/.exec(resources.limits.memory)!;
  const [, request] = /^(\d+)Mi$/.exec(resources.requests.memory)!;
  assertGreater(Number(limit), HELD_MEGABYTES);
  assertLess(Number(limit), 2 * HELD_MEGABYTES);
  assert(Number(request) >= 105 && Number(request) <= Number(limit), `${request} MB are requested`);
  assertEquals([resources.limits.cpu, resources.requests.cpu], [undefined, "50m"]);
});

test("a sick pod gets no request when it is restarted, and the grace period is above drain and shutdown", async (context) => {
  const [deployment] = await parseYaml(MANIFESTS) ?? [];
  if (!deployment) return await leaveOut(context, CANNOT_PARSE);
  const { containers: [container], terminationGracePeriodSeconds } = deployment.spec.template.spec;
  const { env, startupProbe, readinessProbe, livenessProbe } = container;
  const variables = Object.fromEntries(env.map(({ name, value }: Node) => [name, value]));
  const config = parseVariables(variables);
  assertGreaterOrEqual(config.DRAIN_SECONDS, 5, "until every node knows");
  assertGreater(terminationGracePeriodSeconds, config.DRAIN_SECONDS + config.SHUTDOWN_SECONDS + 1);

  for (const probe of [startupProbe, readinessProbe, livenessProbe]) {
    assertEquals(probe.httpGet, { path: "/health", port: "http" });
    assert(probe.timeoutSeconds >= 2, "a busy machine is not sick");
  }
  const until = (probe: Node) => probe.periodSeconds * probe.failureThreshold;
  const said = /after (\d+) s the Service excludes[^]*? after (\d+) s the pod is restarted/.exec(
    readText(MANIFESTS),
  )!;
  assertEquals(
    said.slice(1).map(Number),
    [readinessProbe, livenessProbe].map(until),
    "the comment",
  );
  assertLess(until(readinessProbe), until(livenessProbe), "out of the way before it is restarted");
  assertGreaterOrEqual(until(startupProbe), 30, "time to start");
});

test("the network policy lets the pods answer, and nothing out", async (context) => {
  const [policy] = await parseYaml(POLICY) ?? [];
  if (!policy) return await leaveOut(context, CANNOT_PARSE);
  assertEquals(policy.metadata, { name: project.name, labels: LABELS });
  assertEquals(policy.spec, {
    podSelector: { matchLabels: LABELS },
    policyTypes: ["Egress"],
    egress: [],
  });
});

// ---- Compose ----

const COMPOSE = "docs/deploy/compose.yaml";
/** The longest drain that `operations.md` advises. */
const LONGEST_DRAIN_SECONDS = 30;

test("Compose builds from the repository and runs the image without rights, within bounds", async (context) => {
  const [file] = await parseYaml(COMPOSE) ?? [];
  if (!file) return await leaveOut(context, CANNOT_PARSE);
  assertEquals([file.name, Object.keys(file.services)], [project.name, ["web"]]);
  const { environment, stop_grace_period, mem_limit, memswap_limit, ...web } = file.services.web;
  assertEquals(web, {
    image: "${IMAGE:-devops-info-service}",
    build: { context: "../..", args: { DENO_VERSION: web.build.args.DENO_VERSION } },
    ports: [`\${PORT:-${DEFAULTS.PORT}}:${DEFAULTS.PORT}`],
    restart: "unless-stopped",
    // the command is the image's own, which gives up by itself after two seconds
    healthcheck: { interval: "10s", timeout: "3s", retries: 3, start_period: "10s" },
    read_only: true,
    cap_drop: ["ALL"],
    security_opt: ["no-new-privileges:true"],
    pids_limit: 64,
    cpus: 1,
    logging: { driver: "json-file", options: { "max-size": "10m", "max-file": "3" } },
  });
  const defaults = Object.fromEntries(
    (Object.entries(environment) as [string, string][])
      .map((
        [name, value],
      ) => [name, new RegExp(`^\\$\\{${name}:-(.*)\\}$`).exec(value)?.[1] ?? `not ${name}`]),
  );
  const config = parseVariables(defaults);
  assertEquals(config, DEFAULTS, "as the service's own");
  const [, grace] = /^(\d+)s$/.exec(stop_grace_period)!;
  assertGreater(Number(grace), LONGEST_DRAIN_SECONDS + config.SHUTDOWN_SECONDS + 1);
  const [, limit] = /^(\d+)m$/.exec(mem_limit)!;
  assert(Number(limit) > HELD_MEGABYTES && Number(limit) < 2 * HELD_MEGABYTES, mem_limit);
  assertEquals(memswap_limit, mem_limit, "no swap");
});

test("image: docker compose makes it healthy, serves it, and takes it down in order", async () => {
  const name = `devops-info-service-${crypto.randomUUID()}`;
  const PORT = String(findFreePort());
  const command = ["docker", "compose", "--file", COMPOSE, "--project-name", name];
  const compose = (...args: string[]) =>
    readOutput([...command, ...args], { env: { PORT, IMAGE: IMAGE! } });
  const label = `label=com.docker.compose.project=${name}`;
  const forget = atExit(
    `docker rm --force $(docker ps --all --quiet --filter ${label}); docker network rm ${name}_default`,
  );
  try {
    await compose("up", "--detach", "--no-build", "--wait");
    const container = await docker("ps", "--quiet", "--filter", label);
    const { State, HostConfig, Config } = await inspect(".", container);
    assertEquals(State.Health.Status, "healthy");
    const { ReadonlyRootfs, CapDrop, SecurityOpt, PidsLimit, Memory, RestartPolicy } = HostConfig;
    assertEquals([ReadonlyRootfs, CapDrop, SecurityOpt], [true, ["ALL"], [
      "no-new-privileges:true",
    ]]);
    assertEquals([PidsLimit, Memory, RestartPolicy.Name], [
      64,
      256 * 1024 * 1024,
      "unless-stopped",
    ]);
    const get = (name: string) => {
      const entry = Config.Env.find((entry: string) => entry.startsWith(`${name}=`));
      return entry?.slice(name.length + 1);
    };
    const config = parseConfig({ get }, false);
    assertGreater(Config.StopTimeout, LONGEST_DRAIN_SECONDS + config.SHUTDOWN_SECONDS + 1);
    assertEquals((await probe(Number(PORT))).status, 200);
    await compose("stop");
    assertEquals(await inspect(".State.ExitCode", container), 0);
  } finally {
    await compose("down");
    forget();
  }
}, !IMAGE && "IMAGE names none");
