/** The proof of the page that the pictures here show: what it says, what it may load, how Chromium sees it. */
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertGreater,
  assertMatch,
  assertNotMatch,
  assertStringIncludes,
} from "@std/assert";
import {
  bindTest,
  CONTRACT_FORMS,
  formatRequest,
  HOSTILE_AGENTS,
  IS_FULL,
  isFile,
  lacks,
  leaveOut,
  makeTempPath,
  OTHER_PATH,
  pathOf,
  type RunningService,
  runTool,
  sendRaw,
  share,
  SOURCE,
  start,
  test,
} from "../../.ci/harness.ts";

for (const form of CONTRACT_FORMS) {
  const test = bindTest(form);

  test("the page shows the JSON object, allows nothing but its style, and escapes", async () => {
    await using service = await start(form, { DRAIN_SECONDS: "300" });
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
      assertNotMatch(html.replaceAll(/&#\d+;/g, ""), /&/, "& is not escaped");
      assertNotMatch(html, /<script|<img|onerror=alert\(1\)>|<\/dd><\/dl><style/);
      const links = ["data:", "/", "/health"].map((target) => `href="${target}`);
      assertEquals(html.match(/(src|href)="(data:|[^"]*)/g), links, "an outside resource");

      const { name, description, ...about } = json.service;
      const { uptime_human } = json.runtime;
      const facts = { ...about, uptime_human, ...json.system, ...json.request };
      assertEquals(
        readTerms(html),
        Object.fromEntries(Object.entries(facts).map(([key, value]) => [key, String(value)])),
      );
      for (const { path, method, description } of json.endpoints) {
        const link = `<a href="${path}">${path}</a>`;
        assertStringIncludes(
          html,
          `<tr><td>${link}</td><td>${method}</td><td>${description}</td></tr>`,
        );
      }
      assertMatch(html, new RegExp(`<h1>${name}</h1><p>${description}</p>`));
      assertMatch(html, /<title>✓ devops-info-service: Healthy<\/title>/);
      assertMatch(html, /<strong>✓ Healthy\.<\/strong> \/health answers 200\./);
      const [, time = "", shown] = /<time datetime="(.*?)">(.*?)<\/time> UTC/.exec(html)!;
      assertAlmostEquals(Date.parse(time), Date.now(), 60_000);
      assertEquals(shown, time.replace("T", " ").replace(/\.\d+Z$/, ""));
      assertStringIncludes(html, description);
    }
    service.kill("SIGUSR2");
    await service.waitForOutput(/switched by hand/);
    await sees(service, "/", 200, "✗", "Unhealthy");
    await sees(service, OTHER_PATH, 404, "?", "Not found");
    service.kill("SIGTERM");
    await service.waitForOutput(/"msg":"draining"/);
    await sees(service, "/", 200, "↓", "Draining");
  }, Deno.build.os === "windows" && "no SIGUSR2");

  test("the 404 page and its curl command escape what the client sent", async () => {
    const service = await share(form);
    for (const target of ['/"><b>x</b>', "/%3Cb%3E", "/<script>", "/&lt;"]) {
      const parts = { fields: "Accept: text/html\r\n", host: "Host: x$(id)&'y'\r\n" };
      const { status, body } = await sendRaw(service.port, formatRequest(target, parts));
      if (status === 400 && body === "") continue; // Deno 2.7 refuses some by itself
      assertEquals(status, 404);
      assertNotMatch(body, /<script|<b>|\$\(|'y'/);
      assertStringIncludes(body, '<code>curl "http://x%24%28id%29%26%27y%27/"</code>');
      assertEquals(readTerms(body).path, target);
    }
    const absolute = formatRequest("http://a?x=/health", { fields: "Accept: text/html\r\n" });
    assertStringIncludes(
      (await sendRaw(service.port, absolute)).body,
      '<code>curl "http://a/"</code>',
    );
  });
}

/** What the page must say of a state. */
async function sees(
  { url }: RunningService,
  path: string,
  code: number,
  mark: string,
  label: string,
) {
  const response = await fetch(`${url}${path}`, { headers: { accept: "text/html" } });
  const html = await response.text();
  assertEquals(response.status, code);
  assertStringIncludes(html, `<title>${mark} devops-info-service: ${label}</title>`);
  const banner = `<p class="banner ${
    label.toLowerCase().replace(" ", "_")
  }"><strong>${mark} ${label}.</strong> `;
  assertStringIncludes(html, banner);
}

/** The facts of a page by their keys, as text. */
function readTerms(html: string): Record<string, string> {
  const terms = html.matchAll(/<dt title="(\w+)">.*?<\/dt><dd>(.*?)<\/dd>/g);
  return Object.fromEntries(Array.from(terms, ([, key, value]) => [key, decodeEntities(value!)]));
}

function decodeEntities(html: string): string {
  return html.replace(/&#(\d+);/g, (_, code) => String.fromCharCode(code));
}

// ---- In Chromium ----

const CHROMIUM = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(
  isFile,
);
const lacksChromium = !CHROMIUM && "chromium is not installed";

interface Visit {
  readonly url: string;
  readonly scheme?: "light" | "dark" | "forced";
  /** Of the window, in CSS pixels. */
  readonly width?: number;
  /** The reader's text zoom, in percent. */
  readonly textSize?: number;
  readonly isPrinted?: boolean;
  readonly userAgent?: string;
}

/** What `.ci/browse.ts` sees of a page. */
interface View {
  readonly title: string;
  readonly facts: [string, string][];
  readonly banner: { readonly text: string; readonly color: string } | null;
  /** What sticks out of its box, scrolls or breaks. */
  readonly broken: string[];
  /** What axe finds, and how many of its rules the page passes. */
  readonly barriers: string[];
  readonly rules: number;
  /** Of paper. */
  readonly sheets: number;
  /** At the top left. */
  readonly pixel: number[];
  readonly iconPixel: number[];
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
    visits: visits.map((visit) => ({ scheme: "light", width: 1280, textSize: 100, ...visit })),
  });
  return output && JSON.parse(output);
}

const CANNOT_DRIVE = "puppeteer-core or axe-core cannot be had from npm";

test(
  "source: Chromium shows the page, and neither it nor axe has anything to complain of",
  async (context) => {
    await using service = await start(SOURCE);
    const { url } = service;
    await using drill = await start(SOURCE);
    drill.kill("SIGUSR2");
    await drill.waitForOutput(/switched by hand/);
    await using drain = await start(SOURCE, { DRAIN_SECONDS: "300" });
    drain.kill("SIGTERM");
    await drain.waitForOutput(/"msg":"draining"/);
    const agents = HOSTILE_AGENTS.toReversed();
    const more: Visit[] = [
      ...[390, 768].map((width) => ({ url, width })),
      { url, textSize: 200 },
      { url, width: 320, textSize: 200 },
      { url, width: 320, scheme: "dark" },
      ...agents.slice(1).map((userAgent) => ({ url, userAgent })),
    ];
    const healthy: Visit[] = [
      { url, isPrinted: true },
      { url, scheme: "dark", userAgent: agents[0]! },
      { url, width: 320, scheme: "forced" },
      { url, width: 320, textSize: 200, userAgent: "x".repeat(1000) },
      ...(IS_FULL ? more : []),
    ];
    const others = [drill.url, drain.url, `${url}/${"x".repeat(500)}`].map((url) => ({
      url,
      width: 320,
    }));
    const views = await browse([...healthy, ...others]);
    if (!views) return await leaveOut(context, CANNOT_DRIVE);
    const seen = views.slice(0, healthy.length);
    const [light, dark] = seen as [View, ...View[]];
    const [sick, last, lost] = views.slice(healthy.length) as [View, View, View];
    for (const { complaints, broken, barriers, rules, title } of views) {
      // Chromium reports every 404
      const others = complaints.filter((text) =>
        !(title.includes("Not found") && / 404 /.test(text))
      );
      assertEquals([others, broken, barriers], [[], [], []]);
      assertGreater(rules, 10, "axe has checked nothing");
    }
    for (const { banner, title } of seen) {
      assertEquals([banner?.text, title], [
        "✓ Healthy. /health answers 200.",
        "✓ devops-info-service: Healthy",
      ]);
    }
    assertEquals(light.sheets, 1);
    assertEquals(light.pixel, [255, 255, 255]);
    assert(dark!.pixel.every((part) => part < 64), `${dark!.pixel} is not dark`);
    const shown = seen.map(({ facts }) => facts.find(([term]) => term === "user_agent")?.[1]);
    for (const agent of IS_FULL ? agents : agents.slice(0, 1)) assert(shown.includes(agent), agent);

    assertMatch(sick.banner!.text, /^✗ Unhealthy\. /);
    const states = [light, sick, last, lost];
    assertEquals(new Set(states.map(({ banner }) => banner?.color)).size, 4, "four colours");
    for (const { iconPixel, banner } of states) {
      assertEquals(`rgb(${iconPixel.join(", ")})`, banner?.color, "the icon's colour");
    }
  },
  lacksChromium,
);

/** A page with a fault for each of the checks. */
const FAULTY = `<!doctype html><html><title>x</title><style>body { width: 100px }</style>
<h1>a name that is too long</h1><div style="width:200px"><p style="width:300px;background:#000;color:#fff">wide</p></div>
<img src="/nowhere.png"><p style="color:#ccc">pale</p></html>`;
const FAULTY_HEADERS = {
  "content-type": "text/html",
  "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
};

test("Chromium and axe would complain of a page that has faults", async (context) => {
  await using server = Deno.serve(
    { hostname: "127.0.0.1", port: 0, onListen() {} },
    () => new Response(FAULTY, { headers: FAULTY_HEADERS }),
  );
  const seen = await browse([{
    url: `http://127.0.0.1:${server.addr.port}/`,
    width: 320,
    isPrinted: true,
  }]);
  if (!seen) return await leaveOut(context, CANNOT_DRIVE);
  const [{ complaints, broken, barriers }] = seen;
  assertMatch(complaints.join(), /Content Security Policy/);
  for (const fault of [/broken over lines/, /<p> wide out of <div>/, /<p> wide is too pale/]) {
    assertMatch(broken.join("\n"), fault);
  }
  assertMatch(barriers.join("\n"), /image-alt: .*nowhere/);
}, lacksChromium);

test("source: the Nu checker finds the page valid", async (context) => {
  await using service = await start(SOURCE);
  const read = async (path: string) =>
    await (await fetch(service.url + path, { headers: { accept: "text/html" } })).text();
  const check = async (pages: string[]): Promise<string[] | undefined> => {
    const output = await runTool(pathOf(".ci/check_html.ts"), pages);
    return output && JSON.parse(output);
  };
  const findings = await check([await read("/"), await read(OTHER_PATH)]);
  if (!findings) return await leaveOut(context, "vnu-jar cannot be had from npm");
  assertEquals(findings, []);
  assertMatch((await check([FAULTY]))!.join("\n"), /alt/);
}, lacks("java") ?? (!IS_FULL && "it takes long, FULL=1 runs it"));
