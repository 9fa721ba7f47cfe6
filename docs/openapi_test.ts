/** The proof of `openapi.json`: answers and examples are as it says, and there are no others. */
import { assertArrayIncludes, assertEquals } from "@std/assert";
import { SOURCE } from "../.test/forms.ts";
import { runTool } from "../.test/programs.ts";
import { formatRequest, sendRaw } from "../.test/requests.ts";
import { DEFAULTS, leaveOut, share, spec, start } from "../.test/run.ts";
import openapi from "./openapi.json" with { type: "json" };

// deno-lint-ignore no-explicit-any -- a description is walked by names that only it knows
type Node = any;
const { info, servers, paths, components: { pathItems, schemas } }: Node = openapi;
const OPERATIONS = Object.values<Node>({ ...paths, ...pathItems }).flatMap(Object.values<Node>);

/** Headers that its introduction promises of every answer, and those of HTTP itself. */
const COMMON = { "cache-control": "no-store", "x-content-type-options": "nosniff" };
const TRANSPORT = ["content-length", "content-type", "date"];

/** The described paths, also with the examples of their queries. */
const TARGETS = Object.entries<Node>(paths).flatMap(([path, { get: { parameters = [] } }]) => [
  path,
  ...parameters.map(resolve).flatMap(({ name, schema }: Node) =>
    (schema.examples ?? schema.enum).map((value: string) => `${path}?${name}=${value}`)
  ),
]);
const REQUESTS = TARGETS
  .flatMap((target) => ["GET", "HEAD", "OPTIONS", "POST"].map((method) => ({ method, target })))
  .concat(["GET", "POST"].map((method) => ({ method, target: "/nowhere" })));

function findOperation(method: string, target: string): Node {
  const path = paths[target.split("?")[0]!];
  if (!path) return pathItems.OtherPath.get;
  return path[method.toLowerCase()] ?? pathItems.OtherMethod.post;
}

function resolve(node: Node): Node {
  const keys: string[] = node.$ref?.slice(2).split("/") ?? [];
  return keys.reduce((node, key) => node[key], node.$ref ? openapi : node);
}

/** The schemas of a response, by content type and by header. */
function findSchemas(response: Node = {}): Record<string, Node> {
  const { content = { none: {} }, headers = {} } = resolve(response);
  const parts = Object.entries<Node>({ ...content, ...headers });
  return Object.fromEntries(parts.map(([key, node]) => [key.toLowerCase(), resolve(node).schema]));
}

Deno.test(spec("answers and examples are as described, and none is missing", async (context) => {
  await using service = await start(SOURCE, { DRAIN_SECONDS: "60" });
  const values = Object.entries<Node>(schemas).flatMap(([about, schema]) =>
    (schema.examples ?? []).map((value: unknown) => ({ schema, value, about }))
  );
  const seen = new Set<string>();
  const see = async (method: string, target: string, parts: object, common: object) => {
    const request = formatRequest(target, { method, ...parts });
    const { status, headers, body } = await sendRaw(service.port, request);
    const [type = ""] = body ? headers.get("content-type")!.split(";") : ["none"];
    const content = type === "application/json" ? JSON.parse(body) : body;
    if (content.error) assertArrayIncludes(schemas.Error.examples, [content]);
    for (const [name, value] of Object.entries(common)) assertEquals(headers.get(name), value);
    for (const name of [...TRANSPORT, ...Object.keys(common)]) headers.delete(name);
    const { operationId, responses } = findOperation(method, target);
    for (const [name, value] of [[type, content], ...headers]) {
      seen.add(`${operationId} ${status} ${name}`);
      const schema = findSchemas(responses[status])[name] ?? true;
      values.push({ schema, value, about: `${method} ${target} ${name}` });
    }
  };
  for (const common of [COMMON, { ...COMMON, connection: "close" }]) {
    for (const parts of [{}, { fields: "Accept: text/html\r\n" }, { host: "Host: a b\r\n" }]) {
      for (const { method, target } of REQUESTS) await see(method, target, parts, common);
    }
    if (common === COMMON) service.kill("SIGTERM");
    await service.waitForOutput(/"msg":"draining"/);
  }
  const promised = OPERATIONS.flatMap(({ operationId, responses: { 500: _, ...responses } }) =>
    Object.entries(responses).flatMap(([status, response]) =>
      Object.keys(findSchemas(response)).map((name) => `${operationId} ${status} ${name}`)
    )
  );
  assertEquals([...seen].sort(), promised.sort());
  const problems = await runTool("validate.ts", { description: openapi, values });
  if (!problems) return await leaveOut(context, "ajv cannot be had from npm");
  assertEquals(problems, []);
}));

Deno.test(spec("version, routes, port and bounds are those of the service", async () => {
  const { port } = await share(SOURCE);
  const fields = `User-Agent: ${"x".repeat(2000)}\r\n`;
  const { body } = await sendRaw(port, formatRequest("/", { fields }));
  const { service, endpoints, request } = JSON.parse(body);
  assertEquals(info.version, service.version);
  assertEquals(Object.keys(paths), endpoints.map(({ path }: Node) => path));
  assertEquals(servers[0].variables.port.default, String(DEFAULTS.PORT));
  assertEquals(schemas.Request.properties.user_agent.maxLength, request.user_agent.length);
  const objects = Object.values<Node>(schemas).filter(({ properties }) => properties);
  for (const { required, properties } of objects) assertEquals(required, Object.keys(properties));
}));
