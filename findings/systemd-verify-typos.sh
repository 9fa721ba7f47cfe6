#!/usr/bin/env bash
# systemd 252 of Debian 12: `systemd-analyze verify` finds typing errors and exits with 0.
#
# `systemd-analyze verify web.service` checks a unit file, for example in CI.
# Expected: a file with `Restrat=on-failure` and `TimeoutStopSec=10 secnods` fails.
# Seen: both are printed as "ignoring", and the exit code is 0. So CI is green, the service is never
# restarted, and a stop has 90 seconds instead of 10.
# What helps: `--recursive-errors=no`, with which the exit code is 1.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian systemd=252.39-1~deb12u2 libsystemd-shared=252.39-1~deb12u2 libapparmor1 libaudit1 \
  libip4tc2 libkmod2 libseccomp2 libmount1 libblkid1 libpam0g libssl3
LD_LIBRARY_PATH+=$(printf '%s:' "$tmp"/{,usr/}lib/*-linux-gnu/systemd)
[[ $(systemd-analyze --version) == "systemd 252 (252.39-"* ]] || changed "another version"

cat >"$tmp/web.service" <<'EOF'
[Service]
ExecStart=/bin/sh
Restrat=on-failure
TimeoutStopSec=10 secnods
EOF
verify() {
  local code=0
  SYSTEMD_UNIT_PATH=$tmp/lib/systemd/system systemd-analyze verify "$@" "$tmp/web.service" \
    2>"$tmp/out" || code=$?
  echo "$(grep -c "web.service.*ignoring" "$tmp/out") messages, exit code $code"
}
same "verify" "2 messages, exit code 0" "$(verify)"
same "verify --recursive-errors=no" "2 messages, exit code 1" "$(verify --recursive-errors=no)"
