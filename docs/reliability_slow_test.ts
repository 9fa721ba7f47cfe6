/** The proof of what `reliability.md` says of clients that are slow. */
import { assertEquals, assertMatch } from "@std/assert";
import {
  bindTest,
  connect,
  formatRequest,
  FORMS,
  IS_FULL,
  lacks,
  lacksDescriptors,
  probe,
  readOutput,
  sleep,
  start,
} from "../.ci/harness.ts";

/**
 * Requests whose every beginning is not yet a request. Cut at each byte they cover the fragments of
 * uNetworking/h1spec, which no package registry has.
 */
const WHOLE = [
  formatRequest("/health"),
  formatRequest("/health", { version: "HTTP/1.0", host: "" }),
  formatRequest("/health", { host: "host:x\r\n", fields: "Accept: */*\r\nX-Empty:\r\n" }),
  formatRequest("/health", { method: "HEAD" }),
  formatRequest("http://x/health"),
  `\r\n${formatRequest("/health")}`,
  "GET /health HTTP/1.1\nHost: x\n\n",
];

for (const form of FORMS) {
  const test = bindTest(form);

  test("every beginning of a request waits for the rest, and then gets the answer", async () => {
    await using service = await start(form);
    const cuts = WHOLE.flatMap((text) =>
      Array.from({ length: text.length - 1 }, (_, n) => [text, n + 1] as const)
    );
    const early: string[] = [];
    let isWhole = false;
    const clients = await Promise.all(cuts.map(async ([text, length]) => {
      const connection = await connect(service.port);
      await connection.send(text.slice(0, length));
      const answer = connection.receive(text.startsWith("HEAD"));
      answer.then(() => isWhole || early.push(text.slice(0, length)));
      return { connection, answer, rest: text.slice(length) };
    }));
    await sleep(500); // the time to answer too early in
    isWhole = true;
    assertEquals(early, []);
    for (const { connection, answer, rest } of clients) {
      await connection.send(rest);
      assertEquals((await answer)?.status, 200, rest);
      connection.close();
    }
  });

  test("a request that comes byte by byte gets its answer", async () => {
    await using service = await start(form);
    using connection = await connect(service.port);
    for (const byte of formatRequest("/health")) await connection.send(byte);
    assertEquals((await connection.receive())?.status, 200);
  });

  test(
    "slow heads, slow bodies and slow readers, 1,000 of each: every probe is answered",
    async () => {
      await using service = await start(form, {}, { memory: "512m" });
      const common = `-c 1000 -r 200 -i 5 -l 20 -p 3 -u ${service.url}/`;
      const attacks = ["-H", "-B -t POST", "-X -w 10 -y 20 -n 5 -z 32 -k 3"]
        .map((attack) => readOutput(`slowhttptest ${attack} ${common}`.split(" ")));
      const reports = Promise.all(attacks);
      let isRunning = true;
      reports.finally(() => isRunning = false).catch(() => {});
      while (isRunning) {
        assertEquals((await probe(service.port)).status, 200);
        await sleep(100);
      }
      for (const report of await reports) assertMatch(report, /service available:\S*\s+\S*YES/);
      assertEquals(service.lines.filter(({ level }) => level === "error"), []);
    },
    !IS_FULL && "20 s, with FULL=1",
    lacks("slowhttptest"),
    lacksDescriptors(3500),
  );
}
