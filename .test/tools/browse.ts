/** Lets Chromium show pages, and prints as JSON what a reader would stumble over on each. */
/// <reference lib="dom" />
// deno-lint-ignore-file no-import-prefix -- a tool of the tests, not of the project
import axe from "npm:axe-core@4.14.1";
import { chromium } from "npm:playwright-core@1.65.1";

interface Visit {
  readonly url: string;
  readonly width: number;
  readonly media: { colorScheme: "dark" | "light" } | { forcedColors: "active" };
}

interface Input {
  readonly executablePath: string;
  readonly folder: string; // for all that Chromium writes
  readonly userAgent: string;
  readonly visits: Visit[];
}

/** Runs in the page: what sticks out of what is around it, or can only be seen by scrolling. */
function findOverflow(): string[] {
  return [...document.querySelectorAll("body, body *")].filter((element) => {
    const { left, right } = element.getBoundingClientRect();
    const around = element.parentElement!.getBoundingClientRect();
    const scrolls = element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1;
    return scrolls || left < around.left - 1 || right > around.right + 1;
  }).map(({ outerHTML }) => `sticks out: ${outerHTML}`);
}

const input: Input = await new Response(Deno.stdin.readable).json();
const { executablePath, folder, userAgent, visits } = input;
const context = await chromium.launchPersistentContext(`${folder}/profile`, {
  artifactsDir: `${folder}/artifacts`,
  executablePath,
  userAgent,
  env: { ...Deno.env.toObject(), HOME: folder, TMPDIR: folder },
  args: ["--disable-gpu"],
});
const page = await context.newPage();
let [asked, faults]: [string, string[]] = ["", []];
page.on("console", (message) => faults.push(message.text()));
page.on("request", (request) => {
  const url = request.url();
  if (url !== asked && !url.startsWith("data:")) faults.push(`asks for ${url}`);
});
await page.addInitScript(axe.source);

const views = [];
for (const { url, width, media } of visits) {
  [asked, faults] = [`${url}/`, []];
  await page.emulateMedia({ colorScheme: null, forcedColors: null, ...media });
  await page.setViewportSize({ width, height: 844 });
  await page.goto(url);
  const background = await page.evaluate("getComputedStyle(document.documentElement).background");
  for (const textSize of [200, 100]) { // percent, as a reader zooms it
    await page.evaluate(`document.documentElement.style.fontSize = "${textSize}%"`);
    faults.push(...await page.evaluate(findOverflow));
  }
  const { violations, passes } = await page.evaluate<axe.AxeResults>("axe.run()");
  for (const { id, nodes } of violations) faults.push(`${id}: ${nodes.map(({ html }) => html)}`);
  views.push({ background, faults, rules: passes.length });
}
await context.close();
console.log(JSON.stringify(views));
