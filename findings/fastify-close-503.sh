#!/usr/bin/env bash
# Fastify 5.12.8 (npm): from the call of close() on, requests that arrive get 503.
#
# A service that stops in order goes on serving for some seconds, until its balancer has noticed.
# Fastify's hook `preClose` runs before the server closes, which looks like the place to wait.
# Expected: while the hook waits, requests are answered as before.
# Seen: 503 Service Unavailable at once, although the port is still open. The pause that should lose
# no request answers each of them with an error.
# What helps: wait before the call of close(), or `return503OnClosing: false`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

npm_packages fastify@5.12.8
same "version" "5.12.8" "$(version_of fastify)"

# The status before close(), and 200 ms after it, while the hook still waits.
statuses() {
  (cd "$tmp" && node -e '
    const fastify = require("fastify")({ return503OnClosing: process.argv[1] === "true" });
    fastify.get("/", async () => "ok");
    fastify.addHook("preClose", () => new Promise((done) => setTimeout(done, 2000)));
    (async () => {
      const address = await fastify.listen({ port: 0, host: "127.0.0.1" });
      const headers = { connection: "close" };
      const status = async () => (await fetch(address, { headers })).status;
      const before = await status();
      const closed = fastify.close();
      await new Promise((done) => setTimeout(done, 200));
      console.log(before, await status());
      await closed;
    })();
  ' "$1")
}
same "before close() and during preClose" "200 503" "$(statuses true)"
same "the same with return503OnClosing: false" "200 200" "$(statuses false)"
