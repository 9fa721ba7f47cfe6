#!/usr/bin/env bash
# jq 1.6 of Debian 12: `jq -e` succeeds when it has nothing to read.
#
# A usual health check is `curl -sf URL | jq -e '.status == "healthy"'`. When the service is down,
# curl prints nothing, and the exit code of a pipe is that of its last command, jq.
# Expected: 4, which jq's manual promises "if no valid result was ever produced".
# Seen: 0. The check fails for an unhealthy service and passes for one that does not run at all.
# What helps: `set -o pipefail`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian jq=1.6-2.1+deb12u3 libjq1=1.6-2.1+deb12u3 libonig5
same "version" "jq-1.6" "$(jq --version)"

check() {
  local code=0
  sh -c "curl -sf 127.0.0.1:$1/health | jq -e '.status == \"healthy\"'" >"$tmp/out" || code=$?
  echo "$code"
}

serve 'response.end(`{"status":"unhealthy"}`)'
same "exit code, unhealthy service" 1 "$(check "$port")"
same "exit code, service that does not run" 0 "$(check "$(free_port)")"
