#!/usr/bin/env bash
# Prometheus' blackbox exporter 0.23.0 of Debian 12: a plain 200 fails a probe that allows gzip.
#
# A module with `compression: gzip` and `Accept-Encoding: gzip, identity` says: gzip if you like.
# Expected: a service that does not compress its short answer passes, as in each browser.
# Seen: probe_http_status_code 200, and probe_success 0.
# `compression` is a demand, not an offer: the debug output says "gzip: invalid header". Without it
# the same headers pass.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian prometheus-blackbox-exporter=0.23.0-4+b4
[[ $(prometheus-blackbox-exporter --version 2>&1) == "blackbox_exporter, version 0.23.0"* ]] ||
  changed "another version"

serve 'response.end("healthy")'
service=$port
exporter=127.0.0.1:$(free_port)
cat >"$tmp/blackbox.yml" <<'EOF'
modules:
  gzip:
    prober: http
    http: { compression: gzip, headers: { Accept-Encoding: "gzip, identity" } }
  plain:
    prober: http
    http: { headers: { Accept-Encoding: "gzip, identity" } }
EOF
prometheus-blackbox-exporter --config.file="$tmp/blackbox.yml" --web.listen-address="$exporter" \
  2>"$tmp/log" &
pids+=($!)
wait_for curl -qsf "http://$exporter/"

probe() {
  curl -qs "http://$exporter/probe?module=$1&target=http://127.0.0.1:$service/" |
    grep -e ^probe_http_status_code -e ^probe_success | paste -sd ' '
}
same "with compression" "probe_http_status_code 200 probe_success 0" "$(probe gzip)"
same "without compression" "probe_http_status_code 200 probe_success 1" "$(probe plain)"
