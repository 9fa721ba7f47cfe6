/** Lets Chromium show pages, and prints as JSON what a reader would see and stumble over on each. */
/// <reference lib="dom" />
// deno-lint-ignore-file no-import-prefix -- a tool of the tests, not of the project
import axe from "npm:axe-core@4.14.1";
import { chromium } from "npm:playwright-core@1.65.1";

type Media = { colorScheme: "dark" | "light" } | { forcedColors: "active" };

interface Input {
  readonly executablePath: string;
  readonly folder: string; // for all that Chromium writes
  readonly userAgent: string;
  readonly visits: [url: string, width: number, media: Media][];
}

/** Runs in the page: what sticks out, and which words are broken where a line has room for them. */
function findBroken(): string[] {
  const broken: string[] = [];
  for (const element of document.querySelectorAll("body, body *")) {
    const { left, right } = element.getBoundingClientRect();
    const around = element.parentElement!.getBoundingClientRect();
    const isInside = left > around.left - 1 && right < around.right + 1;
    const scrolls = element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1;
    if (!isInside || scrolls) broken.push(`sticks out: ${element.outerHTML}`);
  }
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode as Text;
    const room = text.parentElement!.closest("section, header, footer")?.clientWidth ?? 0;
    for (const { 0: word, index } of text.data.matchAll(/[\w.:]+/g)) {
      const range = document.createRange();
      range.setStart(text, index);
      range.setEnd(text, index + word.length);
      const lines = [...range.getClientRects()];
      const length = lines.reduce((sum, { width }) => sum + width, 0);
      if (lines.length > 1 && length < room) broken.push(`broken though it has room: ${word}`);
    }
  }
  return broken;
}

/** Runs in the page: white text whose background a printer leaves out. */
function findWhiteOnPaper(): string[] {
  return [...document.querySelectorAll("body *")].filter((element) => {
    const { color, printColorAdjust } = getComputedStyle(element);
    return color === "rgb(255, 255, 255)" && printColorAdjust !== "exact";
  }).map(({ outerHTML }) => `white on paper: ${outerHTML}`);
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
for (const [url, width, media] of visits) {
  [asked, faults] = [url, []];
  await page.emulateMedia({ colorScheme: null, forcedColors: null, ...media });
  await page.setViewportSize({ width, height: 844 });
  await page.goto(url);
  const background = await page.evaluate("getComputedStyle(document.documentElement).background");
  for (const textSize of [200, 100]) { // percent, as a reader zooms it
    await page.evaluate(`document.documentElement.style.fontSize = "${textSize}%"`);
    faults.push(...await page.evaluate(findBroken));
  }
  const { violations, passes } = await page.evaluate<axe.AxeResults>("axe.run()");
  for (const { id, nodes } of violations) faults.push(`${id}: ${nodes.map(({ html }) => html)}`);
  views.push({ background, faults, rules: passes.length });
}
await page.emulateMedia({ media: "print" }); // the last page
faults.push(...await page.evaluate(findWhiteOnPaper));
const margin = { top: "1cm", right: "1cm", bottom: "1cm", left: "1cm" };
const pdf = await page.pdf({ format: "Letter", margin });
const sheets = pdf.toString("latin1").match(/\/Type\s*\/Page\b/g)?.length;
await context.close();
console.log(JSON.stringify({ views, sheets }));
