#!/usr/bin/env bash
# Apache 2.4.71 of Debian 12: a health check by OPTIONS ignores the address that it was given.
#
# mod_proxy_hcheck asks each member of a balancer; `hcmethod` is the method, `hcuri` the path.
# Expected: `hcmethod=OPTIONS hcuri=/health` sends OPTIONS /health.
# Seen: it sends `OPTIONS * HTTP/1.0`, a question about the server as a whole. Most servers have a
# good answer to it, so a member that answers 503 to all real requests is never taken out.
# `hcmethod=HEAD` and GET take the path.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian apache2-bin=2.4.71-1~deb12u1 libapr1 libaprutil1 libexpat1
[[ $(apache2 -v) == *"Apache/2.4.71 "* ]] || changed "version: $(apache2 -v | head -n 1)"

serve 'response.statusCode = request.method === "OPTIONS" ? 204 : 503; response.end()'
service=$port

# Runs a balancer with this method until the service gets $first, its first check.
check() {
  : >"$tmp/requests"
  rm -rf "$tmp/run" && mkdir "$tmp/run"
  {
    for module in mpm_event authz_core slotmem_shm proxy proxy_http proxy_balancer \
      lbmethod_byrequests proxy_hcheck; do
      echo "LoadModule ${module}_module $tmp/usr/lib/apache2/modules/mod_$module.so"
    done
    echo "ServerName localhost
      User #65534
      Group #65534
      DefaultRuntimeDir $tmp/run
      PidFile $tmp/run/pid
      ErrorLog $tmp/run/error.log
      Listen 127.0.0.1:$(free_port)
      ProxyPass / balancer://web/
      <Proxy balancer://web>
        BalancerMember http://127.0.0.1:$service hcmethod=$1 hcuri=/health hcinterval=1
      </Proxy>"
  } >"$tmp/apache.conf"
  apache2 -f "$tmp/apache.conf" -D FOREGROUND 2>"$tmp/apache.log" &
  pids+=($!)
  wait_for test -s "$tmp/requests"
  kill $!
  wait $! || true
  first=$(head -n 1 "$tmp/requests")
}
check OPTIONS
same "hcmethod=OPTIONS hcuri=/health" "OPTIONS * HTTP/1.0" "$first"
check HEAD
same "hcmethod=HEAD hcuri=/health" "HEAD /health HTTP/1.0" "$first"
