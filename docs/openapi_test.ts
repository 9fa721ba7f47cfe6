/** The proof of `openapi.json`: answers are as it says, its examples too, and there is nothing else. */
import { assert, assertEquals } from "@std/assert";
import { createClock } from "../main.ts";
import {
  BAD_HOSTS,
  bindTest,
  BROWSER_ACCEPT,
  formatRequest,
  FORMS,
  leaveOut,
  OTHER_PATH,
  pathOf,
  PATHS,
  runTool,
  sendRaw,
  start,
  test,
} from "../.ci/harness.ts";
import openapi from "./openapi.json" with { type: "json" };
import project from "../deno.json" with { type: "json" };

// deno-lint-ignore no-explicit-any -- a description is walked by names that only it knows
type Node = any;
const OPENAPI: Node = openapi;

interface Check {
  readonly schema: object;
  readonly value: unknown;
  readonly about: string;
}

const CANNOT_VALIDATE = "ajv cannot be had from npm";

/** Validates values by schemas of the description: what is wrong with each; nothing where ajv cannot be had. */
async function validate(values: Check[]): Promise<string[] | undefined> {
  const output = await runTool(pathOf(".ci/validate.ts"), { description: OPENAPI, values });
  return output && JSON.parse(output);
}

/** What the description says of a request: its operation, or that of any other method or path. */
function findOperation(method: string, path: string): Node {
  const { OtherMethod, OtherPath } = OPENAPI.components.pathItems;
  const item = OPENAPI.paths[path];
  const name = method.toLowerCase();
  return item ? item[name] ?? OtherMethod.post : OtherPath[name] ?? OtherPath.post;
}

/** Follows a reference, where there is one. */
function resolve(node: Node): Node {
  if (!node?.$ref) return node;
  return resolve(
    node.$ref.slice(2).split("/").reduce((node: Node, key: string) => node[key], OPENAPI),
  );
}

for (const form of FORMS) {
  bindTest(form)("answers as docs/openapi.json says, and nothing else", async (context) => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
    const values: Check[] = [];
    const spoilt: Check[] = []; // headers that are almost as they should be
    const seen = new Set<string>();

    const check = async (
      method: string,
      path: string,
      parts: { host?: string; fields?: string },
    ) => {
      const about = `${method} ${path} ${JSON.stringify(parts)}`;
      const { status, headers, body } = await sendRaw(
        service.port,
        formatRequest(path, { method, ...parts }),
      );
      const operation = findOperation(method, path);
      const response = resolve(operation.responses[status]);
      assert(response, `${about}: ${status} is not documented`);
      const [type = ""] = (headers.get("content-type") ?? "").split(";");
      seen.add(`${operation.operationId ?? operation.summary} ${status} ${body && type}`);

      const documented = new Map<string, Node>(
        Object.entries(response.headers ?? {}).map((
          [name, header],
        ) => [name.toLowerCase(), resolve(header)]),
      );
      for (const [name, { required, schema }] of documented) {
        if (required) assert(headers.has(name), `${about}: no ${name}`);
        // Deno 2.7 can compress, and says so
        const value = headers.get(name)?.replace(/^Accept-Encoding, |, Accept-Encoding$/, "");
        if (value === undefined) continue;
        values.push({ schema, value, about: `${about} ${name}` });
        spoilt.push({ schema, value: `${value}x`, about: `${spoilt.length} ${name}` });
      }
      if (/^accept-encoding$/i.test(headers.get("vary") ?? "")) headers.delete("vary");
      const known = new Set(["date", "content-length", "content-type", ...documented.keys()]);
      assertEquals([...headers.keys()].filter((name) => !known.has(name)), [], about);

      if (body === "") return assertEquals(response.content, undefined, `${about}: no content`);
      assertEquals(
        headers.get("content-type"),
        type === "text/html" ? `${type}; charset=utf-8` : type,
      );
      const media = response.content?.[type];
      assert(media, `${about}: ${type} is not documented`);
      const value = type === "application/json" ? JSON.parse(body) : body;
      values.push({ schema: media.schema, value, about });
      if (value.error) {
        const examples = Object.values(media.examples).map((example) => resolve(example).value);
        assertEquals([value], examples, `${about}: the example is the answer`);
      }
    };
    const checkAll = async () => {
      for (const path of [...PATHS, OTHER_PATH]) {
        for (const method of ["GET", "HEAD", "OPTIONS", "POST", "DELETE"]) {
          await check(method, path, {});
          await check(method, path, { fields: `Accept: ${BROWSER_ACCEPT}\r\n` });
          await check(method, path, { host: `Host: ${BAD_HOSTS[0]}\r\n` });
        }
      }
    };
    await checkAll();
    service.kill("SIGUSR2");
    await service.waitForOutput(/switched by hand/);
    await checkAll();
    service.kill("SIGTERM");
    await service.waitForOutput(/"msg":"draining"/);
    await checkAll();

    const items = [
      ...Object.values(OPENAPI.paths),
      ...Object.values(OPENAPI.components.pathItems),
    ] as Node[];
    const promised = items.flatMap((item) => Object.values(item) as Node[])
      .filter(({ responses }) => responses)
      .flatMap(({ operationId, summary, responses }) =>
        Object.keys(responses).filter((status) => status !== "500") // which nothing here can cause
          .flatMap((status) =>
            Object.keys(resolve(responses[status]).content ?? { "": {} })
              .map((type) => `${operationId ?? summary} ${status} ${type}`)
          )
      );
    assertEquals([...seen].toSorted(), promised.toSorted(), "all that is documented was seen");

    const problems = await validate([...values, ...spoilt]);
    if (!problems) return await leaveOut(context, CANNOT_VALIDATE);
    const isSpoilt = (problem: string) => /^\d/.test(problem);
    assertEquals(problems.filter((problem) => !isSpoilt(problem)), []);
    assertAllRefused(spoilt, problems.filter(isSpoilt));
  });
}

/** Every content of the description with its examples. */
function findContents(): { schema: Node; examples: Node[] }[] {
  const contents: { schema: Node; examples: Node[] }[] = [];
  const walk = (node: Node) => {
    if (typeof node !== "object" || node === null) return;
    if (node.schema && node.examples) {
      contents.push({ schema: node.schema, examples: Object.values(node.examples).map(resolve) });
    }
    Object.values(node).forEach(walk);
  };
  walk(OPENAPI);
  return contents;
}

/** Facts that may be any text. */
const FREE_TEXTS = ["hostname", "platform_version", "user_agent"];

/** Values that are almost a valid one, each with where it differs. */
function spoil(value: Node, path = ""): [Node, string][] {
  if (typeof value === "number") return [-1, 1.5, String(value)].map((spoilt) => [spoilt, path]);
  if (typeof value === "string") return spoilText(value, path).map((spoilt) => [spoilt, path]);
  if (Array.isArray(value)) {
    const [first, second] = value;
    return [
      [[first], path],
      [[first, first], path],
      [[...value, { ...first, description: second.description }], path],
      ...value.flatMap((item, index) =>
        spoil(item, `${path}/${index}`)
          .map(([spoilt, about]): [Node, string] => [value.with(index, spoilt), about])
      ),
    ];
  }
  return [
    [{ ...value, other: 1 }, path],
    ...Object.keys(value).flatMap((key): [Node, string][] => {
      const { [key]: _, ...rest } = value;
      const spoilt = spoil(value[key], `${path}/${key}`);
      return [
        [rest, path],
        ...spoilt.map(([item, about]): [Node, string] => [{ ...value, [key]: item }, about]),
      ];
    }),
  ];
}

function spoilText(text: string, path: string): unknown[] {
  if (path.endsWith("user_agent")) return ["", 1];
  if (FREE_TEXTS.some((name) => path.endsWith(name))) return [1];
  const others = ["other", "", `${text} `, null];
  if (!text.endsWith("Z")) return others;
  return [
    ...others,
    text.replace(/-\d\d-/, "-13-"),
    text.replace(".000", ""),
    text.replace("Z", "+00:00"),
  ];
}

test("every example is as its schema says, and a schema refuses what is almost an example", async (context) => {
  const good: Check[] = [];
  const bad: Check[] = [];
  for (const { schema, examples } of findContents()) {
    for (const { summary, value } of examples) {
      good.push({ schema, value, about: summary });
      const spoilt: [Node, string][] = typeof value === "string"
        ? [[`<p>${value}`, ""]]
        : spoil(value);
      for (const [value, about] of spoilt) {
        bad.push({ schema, value, about: `${bad.length} ${summary} ${about}` });
      }
    }
  }
  const information = OPENAPI.components.examples.Information.value;
  const change = (part: string, name: string, value: string | number): Check => ({
    schema: { $ref: "#/components/schemas/Information" },
    value: { ...information, [part]: { ...information[part], [name]: value } },
    about: String(value),
  });
  good.push(
    change("request", "client_ip", "2001:db8::7"),
    change("system", "platform", "Darwin"),
    change("system", "platform", "Windows"),
    change("system", "architecture", "aarch64"),
    change("system", "cpu_count", 1),
  );
  for (const minutes of [...Array(120).keys(), 660, 2940]) {
    const { uptime_human } = createClock(undefined, () => minutes * 60_000).describe();
    good.push(change("runtime", "uptime_human", uptime_human));
  }
  for (
    const time of [
      "1 hours, 0 minutes",
      "01 hours, 0 minutes",
      "0 hours, 1 minutes",
      "0 hours, 60 minutes",
    ]
  ) {
    bad.push(change("runtime", "uptime_human", time));
  }
  bad.push(change("system", "cpu_count", 0));
  const { 200: healthy, 503: others } = OPENAPI.paths["/health"].get.responses;
  for (const [one, other] of [[healthy, others], [others, healthy]]) {
    const [{ schema }, { examples }] = [
      one.content["application/json"],
      other.content["application/json"],
    ];
    for (const { summary, value } of (Object.values(examples) as Node[]).map(resolve)) {
      bad.push({ schema, value, about: `${bad.length} ${summary} with the other status` });
    }
  }
  const problems = await validate(good);
  const refusals = await validate(bad);
  if (!problems || !refusals) return await leaveOut(context, CANNOT_VALIDATE);
  assertEquals(problems, []);
  assertAllRefused(bad, refusals);
});

/** Asserts that there is a refusal of each check, whose `about` is unique. */
function assertAllRefused(checks: Check[], refusals: string[]) {
  const refused = new Set(refusals.map((refusal) => refusal.slice(0, refusal.indexOf(": data"))));
  const accepted = checks.filter(({ about }) => !refused.has(about));
  assertEquals(
    accepted.map(({ about, value }) => [about, value]),
    [],
    "accepted, and should not be",
  );
}

test("the description names no value that cannot come, and requires what always comes", () => {
  const leaves = (node: Node): Node[] =>
    typeof node === "object" && node !== null ? Object.values(node).flatMap(leaves) : [node];
  const shown = leaves(
    Object.values(OPENAPI.components.examples).map((example: Node) => example.value),
  );
  const elsewhere = ["Darwin", "Windows", "aarch64"]; // no example is from there
  const named = (node: Node): Node[] =>
    typeof node !== "object" || node === null ? [] : [
      ...leaves(node.enum ?? []),
      ...leaves(node.const ?? []),
      ...Object.values(node).flatMap(named),
    ];
  const unknown = named(OPENAPI.components.schemas).filter((value) =>
    ![...shown, ...elsewhere].includes(value)
  );
  assertEquals(unknown, []);
  const required = Object.entries(OPENAPI.components.headers).filter(([, header]) =>
    (header as Node).required
  );
  assertEquals(required.map(([name]) => name), [
    "Allow",
    "Cache-Control",
    "Vary",
    "X-Content-Type-Options",
  ]);
});

test("docs/openapi.json has the version of deno.json, the routes of the service and its port", () => {
  assertEquals(OPENAPI.info.version, project.version);
  assertEquals(Object.keys(OPENAPI.paths), PATHS);
  const operations = Object.values(OPENAPI.paths).flatMap((item) =>
    Object.values(item as Node)
  ) as Node[];
  assertEquals(operations.map(({ operationId }) => operationId), [
    ...["getInformation", "headInformation", "optionsInformation"],
    ...["getHealth", "headHealth", "optionsHealth"],
  ], "generated clients are called so");
  assertEquals(OPENAPI.servers[0].variables.port.default, "5000");
});
