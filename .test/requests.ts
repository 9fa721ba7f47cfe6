/** Requests where `fetch` would hide something: by bytes on a socket, and by HTTP/2. */
import { Buffer } from "node:buffer";
import { once } from "node:events";
import http2 from "node:http2";
import { waitFor } from "./waiting.ts";

export const HAS_IPV6 = (() => {
  try {
    Deno.listen({ hostname: "::1", port: 0 }).close();
    return true;
  } catch {
    return false;
  }
})();

export function findFreePort(): number {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  return listener.addr.port;
}

export async function isRefused(port: number): Promise<boolean> {
  try {
    using _connection = await Deno.connect({ hostname: "127.0.0.1", port });
    return false;
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionRefused) return true;
    // it closed before it took the connection
    if (error instanceof Deno.errors.ConnectionReset) return false;
    throw error;
  }
}

/** The text of a request, in which a character is a byte. `host` and `fields` are whole lines. */
export function formatRequest(
  target: string,
  { method = "GET", version = "HTTP/1.1", host = "Host: x\r\n", fields = "", body = "" } = {},
): string {
  return `${method} ${target} ${version}\r\n${host}${fields}\r\n${body}`;
}

/** An answer, in whose body a character is a byte. */
interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly body: string;
}

/** A connection on which a test writes its requests by itself. */
export class Connection implements Disposable {
  /** What came and was not taken as an answer. */
  received = "";
  readonly #connection: Deno.TcpConn;
  readonly #buffer = Buffer.alloc(65_536);
  #isOpen = true;

  constructor(connection: Deno.TcpConn) {
    this.#connection = connection;
  }

  /** Sends text, in which a character is a byte. */
  async send(text: string) {
    let bytes = Buffer.from(text, "latin1");
    while (bytes.length > 0) bytes = bytes.subarray(await this.#connection.write(bytes));
  }

  /** Takes the next answer out of what was received; nothing where it is not whole. */
  take(isHead = false): Answer | undefined {
    const [head = "", rest] = this.received.split(/\r\n\r\n(.*)/s, 2);
    if (rest === undefined) return undefined;
    const { status, headers } = parseHead(head);
    const isEmpty = isHead || status < 200 || status === 204;
    const length = isEmpty ? 0 : Number(headers.get("content-length") ?? Infinity);
    if (rest.length < length) return undefined;
    this.received = rest.slice(length);
    return { status, headers, body: rest.slice(0, length) };
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
    if (length !== null) this.received += this.#buffer.toString("latin1", 0, length);
    return length !== null;
  }

  async closeWrite() {
    await this.#connection.closeWrite();
  }

  close() {
    if (this.#isOpen) this.#connection.close();
    this.#isOpen = false;
  }

  readonly [Symbol.dispose] = () => this.close();
}

export async function connect(port: number, hostname = "127.0.0.1"): Promise<Connection> {
  return new Connection(await Deno.connect({ hostname, port }));
}

function parseHead(head: string) {
  const [statusLine = "", ...fields] = head.split("\r\n");
  const status = Number(/^HTTP\/1\.[01] (\d{3}) /.exec(statusLine)?.[1]);
  if (!status) throw new Error(`no HTTP answer: ${JSON.stringify(head)}`);
  const pairs = fields.map((field) => field.split(/: ?(.*)/s, 2) as [string, string]);
  return { status, headers: new Headers(pairs) };
}

/** Sends the text of a request on a connection of its own, which no pool hides. */
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

export function probe(port: number, hostname?: string): Promise<Answer> {
  return sendRaw(port, formatRequest("/health"), hostname);
}

/**
 * Sends a request by HTTP/2, by prior knowledge, on a connection of its own.
 *
 * @param headers by name, pseudo-headers among them
 * @throws {Error} when the service refuses or resets the stream
 */
export async function sendHttp2(
  port: number,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const session = http2.connect(`http://127.0.0.1:${port}`);
  session.on("error", () => {}); // its stream has the same error
  const closed = new Promise((resolve) => session.once("close", resolve));
  const receive = async () => {
    const stream = session.request(headers);
    stream.setEncoding("latin1").end();
    const [{ ":status": status, ...fields }] = await once(stream, "response");
    let body = "";
    for await (const text of stream) body += text;
    return { status, headers: new Headers(fields), body };
  };
  try {
    return await waitFor(receive(), `an answer to ${JSON.stringify(headers)} by HTTP/2`);
  } finally {
    session.destroy();
    await closed;
  }
}
