#!/usr/bin/env bash
# httping 2.5 of Debian 12: an option that shows the status also decides what a success is.
#
# `httping -c 1 URL` tells whether a web server answers, and exits with 0 if it does.
# Expected: -s, "show statuscodes" in its manual, adds the status to the line.
# Seen: for a service that answers 503, `httping` counts "1 ok", exit code 0; `httping -s` counts
# "0 ok, 100.00% failed", exit code 127. A monitor without -s never notices an unhealthy service.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian httping=2.5-5.2+b1 libfftw3-double3 libncursesw6 libtinfo6 libssl3
[[ $(httping -V 2>&1) == "HTTPing v2.5,"* ]] || changed "version: $(httping -V 2>&1 | head -n 1)"

serve 'response.statusCode = 503; response.end()'
ping() {
  local code=0
  httping "$@" -c 1 -g "http://127.0.0.1:$port/" >"$tmp/out" || code=$?
  echo "$(grep -o '[01] ok, [0-9.]*% failed' "$tmp/out"), exit code $code"
}
same "httping" "1 ok, 0.00% failed, exit code 0" "$(ping)"
same "httping -s" "0 ok, 100.00% failed, exit code 127" "$(ping -s)"
