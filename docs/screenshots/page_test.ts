/** The proof of the page that the pictures here show: what it says, what it may load, how Chromium sees it. */
import {
  assert,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertNotMatch,
  assertStringIncludes,
} from "@std/assert";
import {
  bindTest,
  CONTRACT_FORMS,
  HOSTILE_AGENTS,
  isFile,
  leaveOut,
  makeTempPath,
  pathOf,
  runTool,
  SOURCE,
  start,
  test,
} from "../../.ci/harness.ts";

for (const form of CONTRACT_FORMS) {
  const test = bindTest(form);

  test("the page shows the JSON object, allows nothing but its style, and escapes", async () => {
    await using service = await start(form);
    for (const agent of HOSTILE_AGENTS) {
      const headers = { "user-agent": agent };
      const json = await (await fetch(service.url, { headers })).json();
      const response = await fetch(service.url, { headers: { ...headers, accept: "text/html" } });
      const html = await response.text();

      const style = /<style>([^]*?)<\/style>/.exec(html)![1]!;
      const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(style));
      const policy = response.headers.get("content-security-policy")!.split("; ");
      for (
        const directive of [
          "default-src 'none'",
          "frame-ancestors 'none'",
          `style-src 'sha256-${btoa(String.fromCharCode(...new Uint8Array(hash)))}'`,
        ]
      ) assert(policy.includes(directive), `${policy} without ${directive}`);
      assertEquals(response.headers.get("referrer-policy"), "no-referrer");
      assertNotMatch(html, /<script|<img|onerror=alert\(1\)>|<\/dd><\/dl><style/);
      assertEquals(html.match(/(src|href)="[^"]{0,5}/g), [`href="data:`], "an outside resource");

      const items = [...html.matchAll(/<dt>(.*?)<\/dt><dd>(.*?)<\/dd>/g)]
        .map(([, key, value]) => [key!.replaceAll(" ", "_"), decodeEntities(value!)]);
      const { name, description, ...rest } = json.service;
      const expected = [rest, json.system, json.runtime, json.request, ...json.endpoints]
        .flatMap((section) => Object.entries(section).map(([key, value]) => [key, String(value)]));
      const withoutTime = (entries: unknown[][]) =>
        entries.filter(([key]) => key !== "current_time" && key !== "uptime_seconds");
      assertEquals(withoutTime(items), withoutTime(expected));
      assertMatch(html, new RegExp(`<h1>${name}</h1><strong class="healthy">healthy</strong>`));
      assertStringIncludes(html, description);
    }
    service.kill("SIGUSR2");
    await service.waitForOutput(/switched by hand/);
    const response = await fetch(service.url, { headers: { accept: "text/html" } });
    assertEquals(response.status, 200);
    assertMatch(
      await response.text(),
      /<title>devops-info-service: unhealthy<\/title>[^]*<strong class="unhealthy">/,
    );
  }, Deno.build.os === "windows" && "no SIGUSR2");
}

function decodeEntities(html: string): string {
  return html.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(code));
}

// ---- In Chromium ----

const CHROMIUM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(isFile);
const lacksChromium = !CHROMIUM && "chromium is not installed";

interface Visit {
  readonly url: string;
  readonly scheme?: "light" | "dark";
  readonly width?: number;
  readonly userAgent?: string;
}

/** What `.ci/browse.ts` sees of a page. */
interface View {
  readonly title: string;
  readonly facts: [string, string][];
  readonly badge: { readonly text: string; readonly color: string } | null;
  readonly icon: string;
  readonly overflows: boolean;
  readonly firstPixel: number[];
  readonly complaints: string[];
}

/** Lets Chromium visit pages; nothing when what drives it cannot be had. */
async function browse(visits: Visit[]): Promise<[View, ...View[]] | undefined> {
  const folder = makeTempPath("chromium");
  await Deno.mkdir(folder);
  const output = await runTool(pathOf(".ci/browse.ts"), {
    executablePath: CHROMIUM,
    folder,
    exitScript: makeTempPath("chromium.exit"),
    visits: visits.map((visit) => ({ scheme: "light", width: 1000, ...visit })),
  });
  return output && JSON.parse(output);
}

const CANNOT_DRIVE = "puppeteer-core cannot be had from npm";

test("source: Chromium shows the page in both schemes and has nothing to complain of", async (context) => {
  await using service = await start(SOURCE);
  const { url } = service;
  const seen = await browse([
    { url },
    { url, scheme: "dark" },
    { url, width: 390 },
    ...HOSTILE_AGENTS.map((userAgent) => ({ url, userAgent })),
  ]);
  if (!seen) return await leaveOut(context, CANNOT_DRIVE);
  const [light, dark, , ...hostile] = seen;
  for (const { complaints, overflows, badge, title } of seen) {
    assertEquals([complaints, overflows], [[], false]);
    assertEquals([badge?.text, title], ["healthy", "devops-info-service: healthy"]);
  }
  assertEquals(light.firstPixel, [255, 255, 255]);
  assert(dark!.firstPixel.every((part) => part < 64), `${dark!.firstPixel} is not dark`);
  const agents = hostile.map(({ facts }) => facts.find(([term]) => term === "user agent")?.[1]);
  assertEquals(agents, HOSTILE_AGENTS);

  service.kill("SIGUSR2");
  await service.waitForOutput(/switched by hand/);
  const [sick] = (await browse([{ url }]))!;
  assertEquals(sick.badge?.text, "unhealthy");
  assertNotEquals(sick.badge?.color, light.badge?.color);
  for (const { icon, badge } of [light, sick]) assertEquals(readFill(icon), badge?.color);
}, lacksChromium);

/** The colour of the icon, as Chromium writes colours. */
function readFill(icon: string): string {
  const [, hex = ""] = /fill='#([\da-f]{6})'/.exec(decodeURIComponent(icon)) ?? [];
  return `rgb(${[0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(", ")})`;
}

test("Chromium would complain of a page that breaks its policy", async (context) => {
  const headers = { "content-type": "text/html", "content-security-policy": "default-src 'none'" };
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => new Response("<!doctype html><style>body { color: red }</style>", { headers }),
  );
  const seen = await browse([{ url: `http://127.0.0.1:${server.addr.port}/` }]);
  if (!seen) return await leaveOut(context, CANNOT_DRIVE);
  assertMatch(seen[0].complaints.join(), /Content Security Policy/);
}, lacksChromium);
