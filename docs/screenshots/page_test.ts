/** The proof of the page that the pictures here show: what it says, and how a browser shows it. */
import { assertEquals, assertGreater, assertNotEquals, assertStringIncludes } from "@std/assert";
import { createClock, createLogger, handle, type Service } from "../../main.ts";
import { CONTRACT_FORMS, IS_FULL } from "../../.test/forms.ts";
import { isFile, lacks, makeTempPath, runTool } from "../../.test/programs.ts";
import { bindSpec, DEFAULTS, leaveOut, share, spec } from "../../.test/run.ts";

const ACCEPT = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"; // a browser's
const HOSTILE_AGENT = `"' onclick='</dd><script>alert("x")</script><style>* {} &lt; &#60;`;
const FACTS = { hostname: "web", platform: "Linux", platform_version: "6.8.0", cpu_count: 8 };
const SYSTEM = { ...FACTS, architecture: Deno.build.arch, deno_version: "2.9.6", new_fact: "new" };

function makeService(status: Service["status"], uptime: number): Service {
  const clock = createClock(Date.now, () => uptime * 1000);
  const log = createLogger(DEFAULTS, clock, (bytes) => Promise.resolve(bytes.length));
  return { config: DEFAULTS, system: SYSTEM, clock, log, status };
}

function ask(service: Service, accept = ACCEPT): Response {
  const request = new Request("http://x/", { headers: { accept, "user-agent": HOSTILE_AGENT } });
  return handle(service, request, { remoteAddr: { hostname: "127.0.0.1" } });
}

/** What the group of a pattern finds in HTML, as text. */
function findAll(html: string, pattern: RegExp): string[] {
  const decode = (_: string, code: string) => String.fromCharCode(Number(code));
  return Array.from(html.matchAll(pattern), ([, text]) => text!.replace(/&#(\d+);/g, decode));
}

Deno.test("the page shows the facts of the JSON, and escapes what a client sent", async () => {
  const service = makeService("healthy", 3600);
  const json = await ask(service, "application/json").json();
  const html = await ask(service).text();
  const { service: { name, description, ...software }, runtime, system, request } = json;
  const { uptime_seconds: _, ...time } = runtime;
  assertStringIncludes(html, `<h1>${name}</h1><p>${description}</p>`);
  const facts = [software, time, system, request].flatMap(Object.values).map(String);
  assertEquals(findAll(html, /<dd>([^<>"']*)<\/dd>/g), facts);
  const cells = json.endpoints.flatMap(Object.values);
  assertEquals(findAll(html, /<td>(?:<a .*?>)?([^<]*)(?:<\/a>)?<\/td>/g), cells);
  assertEquals(findAll(html, /<a href="(.*?)">/g), ["/", "/health"]);
});

Deno.test("the page's labels are words", async () => {
  const labels = findAll(await ask(makeService("healthy", 0)).text(), /<(?:h2|dt|th)>(.*?)</g);
  assertEquals(labels, [
    ...["Service", "Version", "Framework", "Runtime", "Uptime", "Current time", "Timezone"],
    ...["System", "Hostname", "Platform", "Platform version", "CPUs", "Architecture"],
    ...["Deno version", "New fact", "Request", "Client IP", "User agent", "Method", "Path"],
    ...["Endpoints", "Path", "Method", "Description"],
  ]);
});

const STATES = [
  ["healthy", "✓", "Healthy", 0, "0 minutes, 0 seconds"],
  ["unhealthy", "✗", "Unhealthy", 61, "1 minute, 1 second"],
  ["draining", "↓", "Draining", 3599, "59 minutes, 59 seconds"],
  ["healthy", "✓", "Healthy", 3600, "1 hour, 0 minutes"],
] as const;

for (const [status, mark, label, seconds, uptime] of STATES) {
  Deno.test(`the page tells that it is ${status}, and up for ${uptime}`, async () => {
    const html = await ask(makeService(status, seconds)).text();
    assertStringIncludes(html, `<title>${mark} devops-info-service: ${label}</title>`);
    assertStringIncludes(html, `<p class="banner ${status}"><strong>${mark} ${label}.</strong>`);
    assertStringIncludes(html, `<dd>${uptime}</dd>`);
    const [icon = ""] = findAll(html, /<link rel="icon" href="(.*?)">/g);
    assertEquals(new URL(icon).hash, "", "it would end at a # of its color");
  });
}

Deno.test("the page may load its own style and nothing else", async () => {
  const response = ask(makeService("healthy", 0));
  const [style] = findAll(await response.text(), /<style>([^]*?)<\/style>/g);
  const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(style));
  const policy = `default-src 'none'; style-src 'sha256-${new Uint8Array(hash).toBase64()}'; `;
  assertStringIncludes(response.headers.get("content-security-policy")!, policy);
});

for (const form of CONTRACT_FORMS) {
  const formSpec = bindSpec(form);
  Deno.test(formSpec("a browser gets the page", async () => {
    const response = await fetch((await share(form)).url, { headers: { accept: ACCEPT } });
    assertEquals(response.headers.get("content-type"), "text/html; charset=utf-8");
    assertStringIncludes(await response.text(), "<title>✓ devops-info-service: Healthy</title>");
  }));
}

Deno.test(spec("the Nu checker finds the page valid", async (context) => {
  const findings = await runTool("check_html.ts", [await ask(makeService("healthy", 0)).text()]);
  if (!findings) return await leaveOut(context, "vnu-jar cannot be had from npm");
  assertEquals(findings, []);
}, { unless: lacks("java") ?? (!IS_FULL && "it takes long, FULL=1 runs it") }));

const CHROMIUM = ["chromium", "google-chrome"].map((name) => `/usr/bin/${name}`).find(isFile);
const [LIGHT, DARK] = [{ colorScheme: "light" }, { colorScheme: "dark" }];
const FORCED = { forcedColors: "active" };
const VISITS = [
  ...[["unhealthy", 390, DARK], ["draining", 320, LIGHT]],
  ...[["healthy", 320, FORCED], ["healthy", 1000, LIGHT]],
];
const MORE_VISITS = [320, 390, 1000].flatMap((width) =>
  [LIGHT, DARK, FORCED].map((media) => ["unhealthy", width, media])
);

Deno.test(spec("Chromium and axe have nothing to complain of", async (context) => {
  const options = { hostname: "127.0.0.1", port: 0, onListen() {} };
  await using server = Deno.serve(options, (request, peer) => {
    const [status] = new URL(request.url).hostname.split(".") as [Service["status"]];
    return handle(makeService(status, 59), request, peer);
  });
  const visits = [...IS_FULL ? MORE_VISITS : [], ...VISITS]
    .map(([status, ...rest]) => [`http://${status}.localhost:${server.addr.port}/`, ...rest]);
  const userAgent = HOSTILE_AGENT + "x".repeat(200);
  const input = { executablePath: CHROMIUM, folder: makeTempPath("chromium"), userAgent, visits };
  const { views, sheets } = await runTool("browse.ts", input) ?? {};
  if (!views) return await leaveOut(context, "playwright-core cannot be had from npm");
  for (const [index, { faults }] of views.entries()) {
    assertEquals(faults, [], JSON.stringify(visits[index]));
  }
  assertGreater(views[0].rules, 10, "axe has checked nothing");
  assertNotEquals(views.at(-4).background, views.at(-1).background, "dark is light");
  assertEquals(sheets, 1);
}, { unless: !CHROMIUM && "chromium is not installed" }));
