/** Lets Chromium show pages, and prints as JSON what it shows and what it has to complain of. */
/// <reference lib="dom" />
// deno-lint-ignore no-import-prefix -- a tool of the tests, not of the project
import puppeteer from "npm:puppeteer-core@25.16.0";

interface Input {
  readonly executablePath: string;
  /** For all that Chromium writes. */
  readonly folder: string;
  /** A shell script that ends Chromium is to be here. */
  readonly exitScript: string;
  readonly visits: {
    readonly url: string;
    readonly scheme: "light" | "dark";
    readonly width: number;
    readonly userAgent?: string;
  }[];
}

/** What the page shows, read inside of it. */
function readPage() {
  const badge = document.querySelector("header strong");
  return {
    title: document.title,
    facts: [...document.querySelectorAll("dt")].map((
      term,
    ) => [term.textContent, term.nextElementSibling?.textContent]),
    badge: badge && { text: badge.textContent, color: getComputedStyle(badge).backgroundColor },
    icon: document.querySelector<HTMLLinkElement>("link[rel=icon]")?.href,
    overflows: document.documentElement.scrollWidth > innerWidth,
  };
}

/** The pixel at the top left of a picture, as red, green, blue. */
async function readFirstPixel(png: string) {
  const picture = new Image();
  picture.src = `data:image/png;base64,${png}`;
  await picture.decode();
  const context = document.createElement("canvas").getContext("2d")!;
  context.drawImage(picture, 0, 0);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

const { executablePath, folder, exitScript, visits }: Input = await new Response(Deno.stdin.readable).json();
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
  for (const { url, scheme, width, userAgent } of visits) {
    const page = await browser.newPage();
    const complaints: string[] = [];
    page.on("console", (message) => complaints.push(message.text()));
    page.on("pageerror", (error) => complaints.push(String(error)));
    page.on("requestfailed", (request) => complaints.push(`${request.url()} failed`));
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.setViewport({ width, height: 800 });
    if (userAgent) await page.setUserAgent({ userAgent });
    await page.goto(url);
    const png = await page.screenshot({ encoding: "base64" });
    seen.push({
      ...await page.evaluate(readPage),
      firstPixel: await blank.evaluate(readFirstPixel, png),
      complaints,
    });
    await page.close();
  }
  console.log(JSON.stringify(seen));
} finally {
  await browser.close();
  Deno.removeSync(exitScript);
}
