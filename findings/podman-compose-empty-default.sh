#!/usr/bin/env bash
# podman-compose 1.0.3 of Debian 12: the default "nothing" switches a variable off.
#
# `LOG_LEVEL: ${LOG_LEVEL:-}` in compose.yaml passes a variable on, or an empty text if it is unset.
# Expected: LOG_LEVEL=debug in the environment arrives in the container, as with Docker Compose.
# Seen: the container gets the expression itself, the text `${LOG_LEVEL:-}`, whether the variable is
# set or not, and nothing is said. With any other default, `${LOG_LEVEL:-info}`, it works.
# What helps: the bare name in a list, `environment: [LOG_LEVEL]`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian podman-compose=1.0.3-3 python3-dotenv python3-yaml
# A dry run asks podman only for its version.
printf '#!/bin/sh\necho podman version 4.3.1\n' >"$tmp/usr/bin/podman"
chmod +x "$tmp/usr/bin/podman"
compose() {
  (cd "$tmp" && python3 "$tmp/usr/bin/podman-compose" "$@" 2>&1)
}
[[ $(compose version) == *"version  1.0.3"* ]] || changed "another version"

cat >"$tmp/compose.yaml" <<'EOF'
services:
  web:
    image: web
    environment:
      EMPTY: ${LOG_LEVEL:-}
      INFO: ${LOG_LEVEL:-info}
EOF
variables() {
  compose --dry-run up | grep -o -e '-e [A-Z]*=[^ ]*' | paste -sd ' '
}
export LOG_LEVEL=debug
same "LOG_LEVEL=debug, podman gets" '-e EMPTY=${LOG_LEVEL:-} -e INFO=debug' "$(variables)"
unset LOG_LEVEL
same "LOG_LEVEL unset, podman gets" '-e EMPTY=${LOG_LEVEL:-} -e INFO=info' "$(variables)"
