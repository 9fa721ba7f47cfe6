#!/usr/bin/env bash
# pm2 7.0.4 (npm): a stop sends SIGINT and kills after 1.6 seconds.
#
# pm2 runs a service and restarts it when it ends. `pm2 stop` stops it.
# Expected: SIGTERM, and at least 10 seconds for the stop, as with Docker, systemd and Kubernetes.
# Seen: a service that listens for SIGTERM alone never hears of the stop; it just ends. One that
# listens for SIGINT and takes 3 seconds is killed before it is done.
# What helps: SIGINT in the service, and `--kill-timeout 10000`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

npm_packages pm2@7.0.4
export HOME=$tmp PM2_HOME=$tmp/pm2 PM2_DISABLE_VERSION_CHECK=true
same "version" "7.0.4" "$(version_of pm2)"
pm2 ping >"$tmp/out" 2>&1
pids+=("$(<"$PM2_HOME/pm2.pid")")

# A service that writes down what it hears of SIGNAL and takes 3 seconds to stop.
cat >"$tmp/server.js" <<'EOF'
const note = (word) => require("node:fs").appendFileSync("heard", `${word} `);
process.on(process.env.SIGNAL, () => {
  note(process.env.SIGNAL);
  setTimeout(() => {
    note("done");
    process.exit();
  }, 3000);
});
note("runs");
setInterval(() => {}, 1000);
EOF
heard() {
  rm -f "$tmp/heard"
  (
    cd "$tmp"
    SIGNAL=$1 pm2 start server.js --name web "${@:2}"
    wait_for test -s heard
    pm2 stop web
    pm2 delete web
  ) >"$tmp/out" 2>&1
  cat "$tmp/heard"
}
same "a service with SIGTERM hears" "runs " "$(heard SIGTERM)"
same "a service with SIGINT hears" "runs SIGINT " "$(heard SIGINT)"
same "with --kill-timeout 10000" "runs SIGINT done " "$(heard SIGINT --kill-timeout 10000)"
pm2 kill >"$tmp/out" 2>&1
