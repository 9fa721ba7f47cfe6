/**
 * Lets Chromium show pages, and prints as JSON what it shows, and what it and axe complain of. It speaks
 * the DevTools protocol by itself: a library for that comes with twenty more.
 */
/// <reference lib="dom" />
// deno-lint-ignore-file no-import-prefix no-explicit-any -- a tool; the protocol's types are its own
import axe from "npm:axe-core@4.14.1";

interface Input {
  readonly executablePath: string;
  /** For all that Chromium writes. */
  readonly folder: string;
  readonly visits: {
    readonly url: string;
    readonly width: number;
    readonly scheme?: "light" | "dark" | "forced";
    /** The reader's text zoom, in percent. */
    readonly textSize?: number;
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

// ---- Read inside the page ----

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

/** What sticks out of the box around it, scrolls, or breaks over lines where it must not. */
function findBroken(textSize: number): string[] {
  const found = new Set<string>();
  const sticksOut = (inner: DOMRect, outer: DOMRect) =>
    inner.left < outer.left - 1 || inner.right > outer.right + 1;
  for (const element of document.body.querySelectorAll("*")) {
    const name = `<${element.localName}> ${element.textContent?.trim().slice(0, 30)}`;
    const [box, around] = [element, element.parentElement!].map((one) =>
      one.getBoundingClientRect()
    );
    const content = document.createRange();
    content.selectNodeContents(element);
    const lines = [...content.getClientRects()];
    if (lines.some((line) => sticksOut(line, box!))) found.add(`text out of ${name}`);
    if (sticksOut(box!, around!)) found.add(`${name} out of <${element.parentElement!.localName}>`);
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

/** Pale text, whose background a printer leaves out. */
function findPale(): string[] {
  return [...document.body.querySelectorAll("*")].filter((element) => {
    const { color, printColorAdjust } = getComputedStyle(element);
    const parts = (color.match(/\d+/g) ?? []).slice(0, 3).map(Number);
    return printColorAdjust !== "exact" && parts.every((part) => part > 128);
  }).map(({ localName, textContent }) => `<${localName}> ${textContent?.trim()} is too pale`);
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

// ---- Chromium ----

const { executablePath, folder, visits }: Input = await new Response(Deno.stdin.readable).json();
const chromium = new Deno.Command(executablePath, {
  args: [
    ..."--headless --no-sandbox --disable-gpu --disable-quic --remote-debugging-port=0".split(" "),
    `--user-data-dir=${folder}/profile`,
    "about:blank",
  ],
  env: { HOME: folder, TMPDIR: folder },
  stdin: "null",
  stdout: "null",
  stderr: "piped",
}).spawn();

/** The address of the one page, by which Chromium takes commands. */
async function findPage(): Promise<string> {
  let said = "";
  const errors = chromium.stderr.pipeThrough(new TextDecoderStream());
  for await (const text of errors.values({ preventCancel: true })) {
    said += text;
    const host = /ws:\/\/([^/]+)\/.*\n/.exec(said)?.[1];
    if (!host) continue;
    const targets: any[] = await (await fetch(`http://${host}/json/list`)).json();
    return targets.find(({ type }) => type === "page").webSocketDebuggerUrl;
  }
  throw new Error(`Chromium ended: ${said}`);
}

const socket = new WebSocket(await findPage());
await new Promise((resolve) => socket.onopen = resolve);
const calls: PromiseWithResolvers<any>[] = [];
let loaded = Promise.withResolvers<void>();
let [asked, complaints]: [string, string[]] = ["", []];

socket.onmessage = ({ data }) => {
  const { id, result, error, method, params } = JSON.parse(data);
  if (error) calls[id]!.reject(new Error(error.message));
  else if (id !== undefined) calls[id]!.resolve(result);
  else if (method === "Page.loadEventFired") loaded.resolve();
  else if (method === "Log.entryAdded") complaints.push(params.entry.text);
  else if (method === "Runtime.consoleAPICalled") complaints.push(JSON.stringify(params.args));
  else if (method === "Runtime.exceptionThrown") complaints.push(params.exceptionDetails.text);
  else if (method === "Network.loadingFailed") complaints.push(`failed: ${params.errorText}`);
  else if (method === "Network.requestWillBeSent") {
    const { url } = params.request;
    if (url !== asked && !url.startsWith("data:")) complaints.push(`asks for ${url}`);
  }
};

function call(method: string, params = {}): Promise<any> {
  calls.push(Promise.withResolvers());
  socket.send(JSON.stringify({ id: calls.length - 1, method, params }));
  return calls.at(-1)!.promise;
}

async function visit(url: string) {
  [asked, loaded] = [new URL(url).href, Promise.withResolvers()];
  await call("Page.navigate", { url });
  await loaded.promise;
}

async function evaluate(expression: string) {
  const options = { expression, awaitPromise: true, returnByValue: true };
  const { result, exceptionDetails } = await call("Runtime.evaluate", options);
  if (exceptionDetails) throw new Error(JSON.stringify(exceptionDetails));
  return result.value;
}

/** Calls a function in the page. */
function callIn<T, A>(fn: (argument: A) => T, argument?: A): Promise<Awaited<T>> {
  return evaluate(`(${fn})(${JSON.stringify(argument)})`);
}

for (const domain of ["Page", "Runtime", "Log", "Network"]) await call(`${domain}.enable`);
const seen = [];
try {
  for (
    const { url, scheme = "light", width, textSize = 100, isPrinted, userAgent = "" } of visits
  ) {
    complaints = [];
    const features = [SCHEMES[scheme]];
    await call("Emulation.setEmulatedMedia", { media: "", features });
    const metrics = { width, height: 844, deviceScaleFactor: 1, mobile: false };
    await call("Emulation.setDeviceMetricsOverride", metrics);
    await call("Emulation.setUserAgentOverride", { userAgent });
    await visit(url);
    await evaluate(`document.documentElement.style.fontSize = "${textSize}%"`);
    const { data: png } = await call("Page.captureScreenshot");
    const view = await callIn(readPage);
    const broken = await callIn(findBroken, textSize);
    await evaluate(`${axe.source}; undefined`);
    const { violations, passes }: axe.AxeResults = await evaluate("axe.run(document)");
    const barriers = violations.flatMap(({ id, nodes }) =>
      nodes.map(({ html }) => `${id}: ${html}`)
    );
    let sheets = 0;
    if (isPrinted) {
      await call("Emulation.setEmulatedMedia", { media: "print", features });
      broken.push(...await callIn(findPale));
      const { data } = await call("Page.printToPDF", { paperWidth: 8.27, paperHeight: 11.69 });
      sheets = atob(data).match(/\/Type\s*\/Page\b/g)?.length ?? 0;
    }
    const about = { ...view, broken, barriers, rules: passes.length, sheets, complaints };
    await visit("about:blank"); // which may show any picture
    const pixel = await callIn(readPixel, `data:image/png;base64,${png}`);
    seen.push({
      ...about,
      pixel,
      iconPixel: view.iconUrl ? await callIn(readPixel, view.iconUrl) : [],
    });
  }
} finally {
  await call("Browser.close");
}
console.log(JSON.stringify(seen));
