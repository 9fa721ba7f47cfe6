/** The proof of the page as a browser shows it; main_test.ts proves what it says. */
import { assertEquals, assertGreater, assertNotEquals } from "@std/assert";
import { FORMS, IS_FULL, SOURCE } from "../.test/forms.ts";
import { isFile, makeTempPath, runTool } from "../.test/programs.ts";
import { formatRequest, sendRaw } from "../.test/requests.ts";
import { bindSpec, leaveOut, share, spec, start } from "../.test/run.ts";
import { waitUntil } from "../.test/waiting.ts";

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  Deno.test(formSpec("a browser gets the page", async () => {
    const fields = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n";
    const { headers, body } = await sendRaw(
      (await share(form)).port,
      formatRequest("/", { fields }),
    );
    assertEquals(headers.get("content-type"), "text/html; charset=utf-8");
    assertEquals(body.startsWith("<!doctype html>"), true);
  }));
}

const CHROMIUM = ["chromium", "google-chrome"].map((name) => `/usr/bin/${name}`).find(isFile);
const [LIGHT, DARK] = [{ colorScheme: "light" }, { colorScheme: "dark" }];
const FORCED = { forcedColors: "active" };
const STATES = { healthy: undefined, unhealthy: "SIGUSR2", draining: "SIGTERM" } as const;
const VISITS = [
  { state: "unhealthy", width: 390, media: DARK },
  { state: "draining", width: 320, media: LIGHT },
  { state: "healthy", width: 320, media: FORCED },
  { state: "healthy", width: 1000, media: LIGHT },
];
const MORE_VISITS = [320, 390, 1000].flatMap((width) =>
  [LIGHT, DARK, FORCED].map((media) => ({ state: "unhealthy", width, media }))
);

Deno.test(spec("Chromium and axe have nothing to complain of", async (context) => {
  await using stack = new AsyncDisposableStack();
  const urls: Record<string, string> = {};
  for (const [state, signal] of Object.entries(STATES)) {
    const service = stack.use(await start(SOURCE, { DRAIN_SECONDS: "60" }));
    if (signal) service.kill(signal);
    const look = () => sendRaw(service.port, formatRequest("/health"));
    await waitUntil(state, look, ({ body }) => body.includes(`"${state}"`));
    urls[state] = service.url;
  }
  const visits = [...VISITS, ...IS_FULL ? MORE_VISITS : []]
    .map(({ state, ...rest }) => ({ url: urls[state], ...rest }));
  const userAgent = `"'></dd><script>alert("x")</script><style>* {}&lt;` + "x".repeat(200);
  const input = { executablePath: CHROMIUM, folder: makeTempPath("chromium"), userAgent, visits };
  const views = await runTool("browse.ts", input);
  if (!views) return await leaveOut(context, "playwright-core cannot be had from npm");
  for (const [index, { faults }] of views.entries()) {
    assertEquals(faults, [], JSON.stringify(visits[index]));
  }
  assertGreater(views[0].rules, 10, "axe has checked nothing");
  assertNotEquals(views[0].background, views[1].background, "dark is light");
}, { unless: !CHROMIUM && "chromium is not installed" }));
