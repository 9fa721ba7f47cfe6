#!/usr/bin/env bash
# HAProxy 2.6.12 of Debian 12: a check of the text switches the check of the status off.
#
# `option httpchk GET /health` takes a server out when it answers 503. Then somebody also wants the
# answer to come from the right service and adds `http-check expect string shop`.
# Expected: both must hold, the status and the text.
# Seen: the text alone decides. A server that answers 503 {"service":"shop","status":"unhealthy"} to
# each check stays UP and gets the clients. `haproxy -c` has no warning.
# What helps: a second rule, `http-check expect status 200`. Then both count.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian haproxy=2.6.12-1+deb12u4 liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 libssl3
[[ $(haproxy -v) == "HAProxy version 2.6.12-"* ]] || changed "version: $(haproxy -v | head -n 1)"

serve 'response.statusCode = 503; response.end(`{"service":"shop","status":"unhealthy"}`)'
service=$port

# Runs HAProxy with these rules until it has checked ten times; $state says whom it then asks.
check() {
  local front
  front=$(free_port)
  printf '%s\n' "defaults" "  mode http" "  timeout connect 2s" "  timeout client 5s" \
    "  timeout server 5s" "listen web" "  bind 127.0.0.1:$front" "$@" \
    "  server one 127.0.0.1:$service check inter 100ms" >"$tmp/haproxy.cfg"
  [[ $(haproxy -c -f "$tmp/haproxy.cfg") == "Configuration file is valid" ]] || changed "a warning"
  : >"$tmp/requests"
  haproxy -db -f "$tmp/haproxy.cfg" >"$tmp/haproxy.log" 2>&1 &
  pids+=($!)
  wait_for eval '(($(grep -c "GET /health" "$tmp/requests") > 9))'
  curl -qs "http://127.0.0.1:$front/" >"$tmp/out"
  if grep -q shop "$tmp/out"; then state=UP; else state=DOWN; fi
}
get="  option httpchk GET /health"
text="  http-check expect string shop"
check "$get"
same "GET, state" "DOWN" "$state"
check "$get" "$text"
same "GET and text, state" "UP" "$state"
check "$get" "$text" "  http-check expect status 200"
same "GET, text and status, state" "DOWN" "$state"
