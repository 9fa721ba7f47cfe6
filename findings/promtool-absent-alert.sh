#!/usr/bin/env bash
# promtool 2.42.0 of Debian 12: the test that an alert does not fire passes for a misspelt name.
#
# `promtool test rules` tests alerts; `exp_alerts: []` says that one must not fire.
# Expected: an error for the name of an alert that no rule has, and for a file that does not exist.
# Seen: SUCCESS and exit code 0 for a misspelt name, also when the file of rules is misspelt (that
# gives a warning). So such a test says nothing about the real alert, which does fire here.
# What helps: for each alert also a test in which it fires.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian prometheus=2.42.0+ds-5+deb12u1
[[ $(promtool --version 2>&1) == "promtool, version 2.42.0"* ]] || changed "another version"

cat >"$tmp/rules.yml" <<'EOF'
groups: [{name: web, rules: [{alert: ServiceDown, expr: up == 0}]}]
EOF
silent() {
  local code=0
  cat >"$tmp/test.yml" <<EOF
rule_files: [$1]
tests:
- interval: 1m
  input_series: [{series: 'up{job="web"}', values: '0 0 0'}]
  alert_rule_test: [{eval_time: 2m, alertname: $2, exp_alerts: []}]
EOF
  (cd "$tmp" && promtool test rules test.yml) >"$tmp/out" 2>&1 || code=$?
  echo "$code"
}
same "ServiceDown is silent, exit code" 1 "$(silent rules.yml ServiceDown)"
same "ServiceDwon is silent, exit code" 0 "$(silent rules.yml ServiceDwon)"
same "ServiceDown of rulez.yml is silent, exit code" 0 "$(silent rulez.yml ServiceDown)"
