/** Requests where `fetch` would hide something: by bytes on a socket, and by HTTP/2. */
import http2 from "node:http2";
import { waitFor } from "./waiting.ts";

/** A request's parts that differ from `GET … HTTP/1.1` with `Host: x`. */
export interface RequestParts {
  readonly method?: string;
  readonly version?: string;
  /** Lines, each with its end. */
  readonly host?: string;
  readonly fields?: string;
  readonly body?: string;
}

/** The text of a request, in which a character is a byte. */
export function formatRequest(
  target: string,
  { method = "GET", version = "HTTP/1.1", host = "Host: x\r\n", fields = "", body = "" }:
    RequestParts = {},
): string {
  return `${method} ${target} ${version}\r\n${host}${fields}\r\n${body}`;
}

/** An answer, in whose body a character is a byte. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: string;
}

/** A connection on which a test writes its requests by itself. */
export class Connection implements Disposable {
  /** What came and was not taken as an answer. */
  received = "";
  readonly #connection: Deno.TcpConn;
  #isOpen = true;
  readonly #buffer = new Uint8Array(65536);

  constructor(connection: Deno.TcpConn) {
    this.#connection = connection;
  }

  /** Sends text, in which a character is a byte. */
  async send(text: string) {
    let bytes = Uint8Array.from(text, (character) => character.charCodeAt(0));
    while (bytes.length > 0) bytes = bytes.subarray(await this.#connection.write(bytes));
  }

  /** Takes the next answer out of what was received; nothing where it is not whole. */
  take(isHead = false): Answer | undefined {
    const end = findEnd(this.received, isHead);
    if (end > this.received.length) return undefined;
    const answer = parseAnswer(this.received.slice(0, end));
    this.received = this.received.slice(end);
    return answer;
  }

  /** Waits for the next answer; nothing when the other end closes before it is whole. */
  async receive(isHead = false): Promise<Answer | undefined> {
    while (true) {
      const answer = this.take(isHead);
      if (answer || !await this.read("an answer")) return answer;
    }
  }

  /** Reads until the other end closes. */
  async receiveAll(): Promise<string> {
    while (await this.read("the end of the connection"));
    return this.received;
  }

  /** Waits for some bytes; says whether there were any before the other end closed. */
  async read(what = "some bytes"): Promise<boolean> {
    const reading = this.#connection.read(this.#buffer).catch(() => null); // a reset closes as well
    const seen = () => `${what}; seen last: ${JSON.stringify(this.received.slice(-2000))}`;
    const length = await waitFor(reading, seen);
    if (length === null) return false;
    // in parts, since a call takes only so many arguments
    for (let at = 0; at < length; at += 8192) {
      this.received += String.fromCharCode(
        ...this.#buffer.subarray(at, Math.min(length, at + 8192)),
      );
    }
    return true;
  }

  /** Says that no more will be sent. */
  async closeWrite() {
    await this.#connection.closeWrite();
  }

  close() {
    if (this.#isOpen) this.#connection.close();
    this.#isOpen = false;
  }

  [Symbol.dispose]() {
    this.close();
  }
}

/** Opens a connection to the service. */
export async function connect(port: number, hostname = "127.0.0.1"): Promise<Connection> {
  return new Connection(await Deno.connect({ hostname, port }));
}

/** Where the first answer in a text ends; beyond it when there is more to come. */
function findEnd(text: string, isHead: boolean): number {
  const headEnd = text.indexOf("\r\n\r\n") + 4;
  if (headEnd < 4) return Infinity;
  const head = text.slice(0, headEnd);
  if (isHead || /^HTTP\/1\.1 (1\d\d|204|304) /.test(head)) return headEnd;
  const length = /^content-length: (\d+)\r$/im.exec(head)?.[1];
  return length === undefined ? Infinity : headEnd + Number(length);
}

function parseAnswer(text: string): Answer {
  const headEnd = text.indexOf("\r\n\r\n");
  const [statusLine = "", ...fields] = text.slice(0, headEnd).split("\r\n");
  const status = /^HTTP\/1\.[01] (\d{3}) /.exec(statusLine)?.[1];
  if (!status) throw new Error(`no HTTP answer: ${JSON.stringify(text)}`);
  const headers = new Headers(fields.map((field) => {
    const colon = field.indexOf(":");
    return [field.slice(0, colon), field.slice(colon + 1).trim()];
  }));
  return { status: Number(status), headers, body: text.slice(headEnd + 4) };
}

/**
 * Sends a request on a connection of its own, which no pool hides, and gives its answer.
 *
 * @param port of the service
 * @param text of the request, in which a character is a byte
 * @param hostname of the service
 */
export async function sendRaw(port: number, text: string, hostname?: string): Promise<Answer> {
  using connection = await connect(port, hostname);
  // an answer may come, and the connection be closed, before all is sent
  const sending = connection.send(text).catch(() => {});
  const answer = await connection.receive(text.startsWith("HEAD "));
  connection.close();
  await sending;
  if (answer) return answer;
  throw new Error(`the connection closed after ${JSON.stringify(connection.received)}`);
}

/** Asks for the health, on a connection of its own. */
export function probe(port: number, hostname?: string): Promise<Answer> {
  return sendRaw(port, formatRequest("/health"), hostname);
}

/** What an HTTP/2 request is: method, path and authority, as its pseudo-headers say them. */
export interface Http2Request {
  readonly method?: string;
  readonly path?: string;
  readonly authority?: string;
  readonly headers?: Record<string, string>;
}

/**
 * Sends a request by HTTP/2, by prior knowledge, on a connection of its own.
 *
 * @throws {Error} when the service refuses or resets the stream
 */
export async function sendHttp2(
  port: number,
  { method = "GET", path = "/", authority = `127.0.0.1:${port}`, headers = {} }: Http2Request = {},
): Promise<Answer> {
  const session = http2.connect(`http://127.0.0.1:${port}`);
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  session.on("error", reject);
  const pseudo = { ":path": path, ":authority": authority };
  // a CONNECT has no path
  const { ":path": _, ...withoutPath } = pseudo;
  const stream = session.request({
    ":method": method,
    ...(method === "CONNECT" ? withoutPath : pseudo),
    ...headers,
  });
  let answerHeaders: [string, string][] = [];
  let body = "";
  stream.setEncoding("latin1");
  stream.on("response", (fields: Record<string, unknown>) => {
    answerHeaders = Object.entries(fields).map(([name, value]) => [name, String(value)]);
  });
  stream.on("data", (text: string) => body += text);
  stream.on("end", () => {
    const plain = answerHeaders.filter(([name]) => !name.startsWith(":"));
    const status = Number(answerHeaders.find(([name]) => name === ":status")?.[1]);
    resolve({ status, headers: new Headers(plain), body });
  });
  stream.on("error", reject);
  stream.end();
  try {
    return await waitFor(promise, () => `an answer to ${method} ${path} by HTTP/2`);
  } finally {
    const closed = new Promise((resolve) => session.once("close", resolve));
    session.destroy();
    await closed;
  }
}

// ---- Frames of HTTP/2, where a library would refuse to send them ----

/** What a connection of HTTP/2 begins with: the preface and empty settings. */
export const HTTP2_PREFACE = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + formatFrame(4, 0, 0);

function formatFrame(type: number, flags: number, stream: number, payload = ""): string {
  const { length } = payload;
  const head = [
    length >> 16,
    length >> 8,
    length,
    type,
    flags,
    stream >> 24,
    stream >> 16,
    stream >> 8,
    stream,
  ];
  return String.fromCharCode(...head.map((part) => part & 255)) + payload;
}

/** The header frame that is a whole request. Each name and value is literal, and shorter than 127 bytes. */
export function formatHeaders(
  stream: number,
  fields: readonly (readonly [string, string])[],
): string {
  const literal = (text: string) => String.fromCharCode(text.length) + text;
  const payload = fields.map(([name, value]) => "\0" + literal(name) + literal(value)).join("");
  return formatFrame(1, 5, stream, payload); // END_STREAM and END_HEADERS
}

/** The frame that cancels a stream. */
export function formatReset(stream: number): string {
  return formatFrame(3, 0, stream, "\0\0\0\x08");
}

/** Sends a request of these fields, valid or not, and gives all that comes until the stream ends. */
export async function sendFrames(port: number, fields: readonly (readonly [string, string])[]) {
  using connection = await connect(port);
  await connection.send(HTTP2_PREFACE + formatHeaders(1, fields));
  while (!hasEnded(connection.received) && await connection.read("the end of a stream"));
  return connection.received;
}

/** Whether there is a frame that ends the stream or the connection. */
function hasEnded(frames: string): boolean {
  for (let at = 0; at + 9 <= frames.length;) {
    const [high, middle, low, type, flags] = Array.from(
      frames.slice(at, at + 5),
      (character) => character.charCodeAt(0),
    );
    const length = high! << 16 | middle! << 8 | low!;
    const isWhole = at + 9 + length <= frames.length;
    const endsStream = (type === 0 || type === 1) && (flags! & 1) === 1;
    if (isWhole && (endsStream || type === 3 || type === 7)) return true;
    at += 9 + length;
  }
  return false;
}

/** Whether nothing listens on a port. */
export async function isRefused(port: number): Promise<boolean> {
  try {
    using _connection = await Deno.connect({ hostname: "127.0.0.1", port });
    return false;
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionRefused) return true;
    if (error instanceof Deno.errors.ConnectionReset) return false; // it closed before it took the connection
    throw error;
  }
}
