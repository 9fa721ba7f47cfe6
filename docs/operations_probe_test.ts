/** The proof of what `operations.md` says of `--health`: whatever answers, it ends, small and with one line. */
import { assert, assertEquals, assertLess, assertMatch } from "@std/assert";
import { FORMS } from "../.test/forms.ts";
import { HAS_IPV6 } from "../.test/requests.ts";
import { bindSpec, launch, start } from "../.test/run.ts";
import { sleep } from "../.test/waiting.ts";

/** Answers every connection by these parts of text, a moment apart; then says no more, or closes. */
function answerBy(
  parts: readonly string[],
  { then = "close" as "close" | "silence" | "more" } = {},
) {
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  let sent = 0;
  const answer = async (connection: Deno.Conn) => {
    using _ = connection;
    const send = async (text: string) => {
      const bytes = new TextEncoder().encode(text);
      for (let at = 0; at < bytes.length;) at += await connection.write(bytes.subarray(at));
      sent += bytes.length;
    };
    for (const part of parts) {
      await send(part);
      await sleep(20);
    }
    while (then === "more") await send("x".repeat(65_536));
    if (then === "silence") { while (await connection.read(new Uint8Array(1024)) !== null); }
    else await connection.read(new Uint8Array(1024)); // closing with the request unread would reset
  };
  (async () => {
    for await (const connection of listener) answer(connection).catch(() => {}); // the probe closed
  })();
  return {
    port: listener.addr.port,
    get sent() {
      return sent;
    },
    [Symbol.dispose]: () => listener.close(),
  };
}

const HEAD = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";

for (const form of FORMS) {
  const formSpec = bindSpec(form);

  /** Asks what answers at a port: exit code and line. */
  const ask = async (port: number, HOST = "127.0.0.1") => {
    await using run = await launch(form, { HOST, PORT: String(port) }, ["--health"]);
    const code = await run.waitForCode();
    assertEquals([run.stdout.split("\n").length, run.stderr], [2, ""], run.stdout);
    return { code, line: run.stdout.trimEnd() };
  };

  Deno.test(formSpec("--health goes by the status: 200 and no other", async (context) => {
    const rows = [
      [[`${HEAD}abc`], 0, /^200 abc$/],
      [[HEAD, "abc"], 0, /^200( abc)?$/],
      [["HTTP/1.0 200 OK\r\n\r\n"], 0, /^200$/],
      [["HTTP/1", ".1 2", "00 OK\r\nX: ", "y\r\n\r", "\nab", "c"], 0, /^200( abc?)?$/],
      [["HTTP/1.1 201 Created\r\n\r\nabc"], 1, /: 201 abc$/],
      [["HTTP/1.1 204 No Content\r\n\r\n"], 1, /: 204$/],
      [["HTTP/1.1 302 Found\r\nLocation: /health\r\n\r\n"], 1, /: 302$/],
      [["HTTP/1.1 500 200\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"], 1, /: 500 HTTP/],
      [["HTTP/1.1 2000 OK\r\n\r\n"], 1, /: not HTTP: /],
      [["HTTP/2 200\r\n\r\n"], 1, /: not HTTP: /],
      [["\r\nHTTP/1.1 200 OK\r\n\r\n"], 1, /: not HTTP: /],
      [[], 1, /: not HTTP:$/],
    ] as const;
    const asked = await Promise.all(rows.map(async ([parts]) => {
      using server = answerBy(parts);
      return await ask(server.port);
    }));
    for (const [n, [parts, code, line]] of rows.entries()) {
      await context.step(JSON.stringify(parts), () => {
        assertEquals(asked[n]!.code, code, asked[n]!.line);
        assertMatch(asked[n]!.line, line);
      });
    }
  }));

  Deno.test(
    formSpec("--health reads a few kB of an endless answer, and its status decides", async () => {
      for (
        const [head, code, line] of [
          [HEAD, 0, /^200( x+)?$/],
          ["HTTP/1.1 500 No\r\n\r\n", 1, / 500( x+)?$/],
          ["", 1, / not HTTP: x+$/],
        ] as const
      ) {
        using server = answerBy([head], { then: "more" });
        const found = await ask(server.port);
        assertEquals(found.code, code);
        assertMatch(found.line, line);
        assert(found.line.length < 300, found.line);
        assertLess(server.sent, 50e6, "what was read, beside what the kernel buffers");
      }
    }),
  );

  Deno.test(formSpec("--health waits two seconds at most for who stops in the middle", async () => {
    const begun = Date.now();
    const found = await Promise.all(
      [[], ["HTTP/1.1 "], ["HTTP/1.1 200 OK\r\n"]].map(async (parts) => {
        using server = answerBy(parts, { then: "silence" });
        return await ask(server.port);
      }),
    );
    assertLess(Date.now() - begun, 15_000, "this is not a matter of load");
    for (const { code, line } of found) {
      assertEquals(code, 1);
      assertMatch(line, /^127\.0\.0\.1 port \d+: no answer within 2 seconds$/);
    }
  }));

  Deno.test(formSpec("--health says that it cannot know a free port", async () => {
    const { code, line } = await ask(0);
    assertEquals(code, 1);
    assertMatch(line, /PORT=0 picks a free port, which --health cannot know/);
  }));
}

for (const form of FORMS) {
  const formSpec = bindSpec(form);
  Deno.test(formSpec("--health asks 127.0.0.1 where HOST is ::", async () => {
    await using service = await start(form, { HOST: "::" });
    const env = { HOST: "::", PORT: String(service.port) };
    await using run = await launch(form, env, ["--health"]);
    assertEquals(await run.waitForCode(), 0);
    await using missing = await launch(form, { ...env, PORT: "1" }, ["--health"]);
    assertEquals(await missing.waitForCode(), 1);
    assertMatch(missing.stdout, /^127\.0\.0\.1 port 1: .*refused/);
  }, !HAS_IPV6 && "no IPv6 here"));
}
