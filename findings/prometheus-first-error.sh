#!/usr/bin/env bash
# Prometheus 2.42.0 of Debian 12: an alert on new errors does not see the first one.
#
# A service that counts its answers has no series for status 500 until the first one happens. Then
# the series appears, and its first value is 1.
# Expected: `increase(http_requests_total{status="500"}[5m]) > 0` is true after the first error.
# Seen: increase is 0, and the alert does not fire: Prometheus knows no value before the first one,
# so it sees a constant 1. It fires for the second error. `rate` is the same.
# What helps: a service that starts each series at 0.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian prometheus=2.42.0+ds-5+deb12u1
[[ $(promtool --version 2>&1) == "promtool, version 2.42.0"* ]] || changed "another version"

# One sample a minute; _ is a minute without the series. The answer is wanted after 8 minutes.
increase() {
  cat >"$tmp/test.yml" <<EOF
tests:
- interval: 1m
  input_series: [{series: 'http_requests_total{status="500"}', values: '$1'}]
  promql_expr_test:
  - expr: increase(http_requests_total[5m]) > bool 0
    eval_time: 8m
    exp_samples: [{labels: '{status="500"}', value: $2}]
EOF
  promtool test rules "$tmp/test.yml" >"$tmp/out" 2>&1 || changed "$1: $(tail -n 3 "$tmp/out")"
  echo "more than 0 errors in 5 minutes, values $1: $2"
}
increase '_ _ _ _ _ _ 1 1 1' 0
increase '_ _ _ _ _ _ 1 2 2' 1
increase '0 0 0 0 0 0 1 1 1' 1
