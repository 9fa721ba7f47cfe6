#!/usr/bin/env bash
# hey 0.1.4 of Debian 12: `-n 100 -c 30` sends 90 requests.
#
# hey sends -n requests by -c workers and reports how many answers it got.
# Expected: 100 requests.
# Seen: each worker sends 100 / 30 = 3, rounded down, so 90 come. Nothing is said, and whoever
# compares with a counter of the service looks for 10 lost requests.
# (hey does not tell its version; Debian's package is pinned.)
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian hey=0.1.4-2+b4
serve 'response.end()'
seen=$(hey -n 100 -c 30 "http://127.0.0.1:$port/" | grep -o '\[200\].*' | tr -s '\t' ' ')
same "hey reports" "[200] 90 responses" "$seen"
same "requests at the server" 90 "$(wc -l <"$tmp/requests")"
