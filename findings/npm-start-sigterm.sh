#!/usr/bin/env bash
# npm 11.19.1: SIGTERM to `npm start` ends npm, and the service runs on without having heard of it.
#
# A script or a supervisor runs `npm start` and later sends SIGTERM to that process.
# Expected: npm passes the signal on, waits until the service has stopped, and takes its exit code.
# Seen: npm gives the signal to the shell in which it started the service. Where that is dash, as on
# Debian and Ubuntu, the shell ends, npm ends with 143, and the service hears nothing: it keeps its
# port, and the next start fails. With bash, which replaces itself by the service, all is well.
# What helps: `exec` in package.json, "start": "exec node server.js".
set -euo pipefail
. "$(dirname "$0")/lib.sh"

npm_packages npm@11.19.1
same "version" "11.19.1" "$(npm --version)"

cat >"$tmp/server.js" <<'EOF'
const { writeFileSync } = require("node:fs");
process.on("SIGTERM", () => {
  writeFileSync("state", "stopped");
  process.exit();
});
require("node:http").createServer().listen(0, "127.0.0.1", () => {
  writeFileSync("pid", String(process.pid));
  writeFileSync("state", "runs");
});
EOF

# Starts the service by this script in this shell, ends npm; $state says what became of both.
start_and_stop() {
  local code=0 npm
  rm -f "$tmp/pid"
  echo "{ \"scripts\": { \"start\": \"$1\" } }" >"$tmp/package.json"
  (cd "$tmp" && exec npm start --script-shell="$2") >"$tmp/out" 2>&1 &
  npm=$!
  wait_for test -s "$tmp/pid"
  pids+=("$npm" "$(<"$tmp/pid")")
  sleep 1
  kill "$npm"
  wait "$npm" || code=$?
  sleep 1
  state="npm ended with $code, service $(<"$tmp/state")"
}
command -v dash >"$tmp/out" || cannot "no dash"
start_and_stop "node server.js" dash
same "node server.js, dash" "npm ended with 143, service runs" "$state"
start_and_stop "node server.js" bash
same "node server.js, bash" "npm ended with 0, service stopped" "$state"
start_and_stop "exec node server.js" dash
same "exec node server.js, dash" "npm ended with 0, service stopped" "$state"
