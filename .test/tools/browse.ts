/** Lets Chromium show pages, and prints as JSON what it shows, and what it and axe have to complain of. */
/// <reference lib="dom" />
// deno-lint-ignore-file no-import-prefix -- a tool of the tests, not of the project
import axe from "npm:axe-core@4.14.1";
import puppeteer from "npm:puppeteer-core@25.16.0";

interface Input {
  readonly executablePath: string;
  /** For all that Chromium writes. */
  readonly folder: string;
  /** Where to write a shell script that kills Chromium. */
  readonly exitScript: string;
  readonly visits: {
    readonly url: string;
    readonly scheme: keyof typeof SCHEMES;
    readonly width: number;
    /** The reader's text zoom, in percent. */
    readonly textSize: number;
    readonly isPrinted?: boolean;
    readonly userAgent?: string;
  }[];
}

/** What a reader can prefer: a query of CSS and its value. */
const SCHEMES = {
  light: { name: "prefers-color-scheme", value: "light" },
  dark: { name: "prefers-color-scheme", value: "dark" },
  forced: { name: "forced-colors", value: "active" },
};

/** What the page shows, read inside of it. */
function readPage() {
  const banner = document.querySelector("header .banner");
  return {
    title: document.title,
    facts: [...document.querySelectorAll("dt")].map((term) => [
      term.title,
      term.nextElementSibling?.textContent,
    ]),
    banner: banner && { text: banner.textContent, color: getComputedStyle(banner).backgroundColor },
    iconUrl: document.querySelector<HTMLLinkElement>("link[rel=icon]")?.href,
  };
}

/** What sticks out of the box around it, scrolls, or breaks over lines where it must not; read in the page. */
function findBroken(textSize: number): string[] {
  const found = new Set<string>();
  const sticksOut = (
    inner: { left: number; right: number },
    outer: { left: number; right: number },
  ) => inner.left < outer.left - 1 || inner.right > outer.right + 1;
  for (const element of document.body.querySelectorAll("*")) {
    const name = `<${element.localName}> ${element.textContent?.trim().slice(0, 30)}`;
    const box = element.getBoundingClientRect();
    const content = document.createRange();
    content.selectNodeContents(element);
    const lines = [...content.getClientRects()];
    if (lines.some((line) => sticksOut(line, box))) found.add(`text out of ${name}`);
    for (let around = element.parentElement; around !== null; around = around.parentElement) {
      if (sticksOut(box, around.getBoundingClientRect())) {
        found.add(`${name} out of <${around.localName}>`);
      }
    }
    if (element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1) {
      found.add(`${name} scrolls`);
    }
    const isOneLine = new Set(lines.map(({ top }) => Math.round(top))).size === 1;
    if (textSize === 100 && element.matches("h1, time") && !isOneLine) {
      found.add(`${name} is broken over lines`);
    }
  }
  const { scrollWidth, clientWidth } = document.documentElement;
  if (scrollWidth > clientWidth) found.add("the window scrolls sideways");
  return [...found];
}

/** Pale text, whose background a printer leaves out; read in the page. */
function findPale(): string[] {
  return [...document.body.querySelectorAll("*")].filter((element) => {
    const { color, printColorAdjust } = getComputedStyle(element);
    const parts = (color.match(/\d+/g) ?? []).slice(0, 3).map(Number);
    return printColorAdjust !== "exact" && parts.every((part) => part > 128);
  }).map(({ localName, textContent }) =>
    `<${localName}> ${textContent?.trim().slice(0, 30)} is too pale`
  );
}

/** A pixel of a picture, near its top left, as red, green, blue. */
async function readPixel(url: string) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const context = document.createElement("canvas").getContext("2d")!;
  context.drawImage(picture, 0, 0);
  return [...context.getImageData(8, 8, 1, 1).data].slice(0, 3);
}

const { executablePath, folder, exitScript, visits }: Input = await new Response(
  Deno.stdin.readable,
).json();
const browser = await puppeteer.launch({
  executablePath,
  userDataDir: `${folder}/profile`,
  env: { ...Deno.env.toObject(), HOME: folder, TMPDIR: folder },
  pipe: true,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic"],
});
Deno.writeTextFileSync(exitScript, `kill -s KILL -- -${browser.process()!.pid}`);
try {
  const blank = await browser.newPage();
  const seen = [];
  for (const { url, scheme, width, textSize, isPrinted, userAgent } of visits) {
    const page = await browser.newPage();
    const complaints: string[] = [];
    page.on("console", (message) => complaints.push(message.text()));
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("requestfailed", (request) => complaints.push(`${request.url()} failed`));
    page.on("request", (request) => {
      const other = request.url();
      if (other !== new URL(url).href && !other.startsWith("data:")) {
        complaints.push(`asks for ${other}`);
      }
    });
    const session = await page.createCDPSession();
    await session.send("Emulation.setEmulatedMedia", { features: [SCHEMES[scheme]] });
    await page.setViewport({ width, height: 844 });
    if (userAgent) await page.setUserAgent({ userAgent });
    await page.goto(url);
    await page.evaluate(`document.documentElement.style.fontSize = "${textSize}%"`);
    const png = await page.screenshot({ encoding: "base64" });
    const view = {
      ...await page.evaluate(readPage),
      broken: await page.evaluate(findBroken, textSize),
    };
    await page.evaluate(axe.source);
    const { violations, passes } = await page.evaluate("axe.run(document)") as axe.AxeResults;
    const barriers = violations.flatMap(({ id, nodes }) =>
      nodes.map(({ html }) => `${id}: ${html}`)
    );
    let sheets = 0;
    if (isPrinted) {
      await page.emulateMediaType("print");
      view.broken.push(...await page.evaluate(findPale));
      const pdf = new TextDecoder("latin1").decode(await page.pdf({ format: "A4" }));
      sheets = pdf.match(/\/Type\s*\/Page\b/g)?.length ?? 0;
    }
    seen.push({
      ...view,
      barriers,
      rules: passes.length,
      sheets,
      pixel: await blank.evaluate(readPixel, `data:image/png;base64,${png}`),
      iconPixel: view.iconUrl ? await blank.evaluate(readPixel, view.iconUrl) : [],
      complaints,
    });
    await page.close();
  }
  console.log(JSON.stringify(seen));
} finally {
  await browser.close();
  Deno.removeSync(exitScript);
}
