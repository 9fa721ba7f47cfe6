#!/usr/bin/env bash
# @opentelemetry/auto-instrumentations-node 0.81.2 (npm): with it, SIGTERM no longer ends a service.
#
# `node --require @opentelemetry/auto-instrumentations-node/register server.js` is the documented
# way to get traces without a change of the service.
# Expected: SIGTERM ends a server that has no handler for it, as without the package (143).
# Seen: the package listens for SIGTERM, to send its last data, and does not end the process. Node
# leaves out the default action of a signal that somebody listens for, so the server serves on.
# `docker stop` waits 10 seconds and kills it, Kubernetes 30, and its last requests are lost.
# What helps: a handler for SIGTERM in the service, which closes the server.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

npm_packages @opentelemetry/auto-instrumentations-node@0.81.2 @opentelemetry/api@1.9.0
same "version" "0.81.2" "$(version_of @opentelemetry/auto-instrumentations-node)"

# Nothing is exported, and nothing outside is asked.
export OTEL_TRACES_EXPORTER=none OTEL_METRICS_EXPORTER=none OTEL_LOGS_EXPORTER=none
export OTEL_NODE_RESOURCE_DETECTORS=none
echo 'const server = require("node:http").createServer((_, response) => response.end("ok"));
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));' >"$tmp/server.js"

# Starts the server with these options of Node's; the process is $pid, the port is in $tmp/port.
start() {
  : >"$tmp/port"
  (cd "$tmp" && exec node "$@" server.js) >"$tmp/port" 2>"$tmp/log" &
  pid=$!
  pids+=("$pid")
  wait_for test -s "$tmp/port"
}
code=0
start
kill "$pid"
wait "$pid" || code=$?
same "plain, exit code after SIGTERM" 143 "$code"

start --require @opentelemetry/auto-instrumentations-node/register
kill "$pid"
sleep 3
answer=$(curl -qs --max-time 5 "http://127.0.0.1:$(<"$tmp/port")/") || changed "SIGTERM ends it"
same "with OpenTelemetry, answer 3 seconds after SIGTERM" "ok" "$answer"
