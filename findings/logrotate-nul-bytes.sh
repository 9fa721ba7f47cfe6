#!/usr/bin/env bash
# logrotate 3.21.0 of Debian 12 and the shell's `>`: after copytruncate the log begins with zeros.
#
# `service > web.log` writes a log. logrotate's `copytruncate` is for programs that do not open
# their log again: it copies the file and makes it empty.
# Expected: the log is empty after the rotation, and the next line is its first one.
# Seen: `>` remembers its position, so the next line is written there, behind as many zero bytes as
# the old log was long. The file looks as long as before, and grep says "binary file matches" and
# does not show the line. With `>>` it works as expected: each write goes to the end.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian logrotate=3.21.0-1 libpopt0
same "version" "logrotate 3.21.0" "$(logrotate --version 2>&1 | head -n 1)"

echo "$tmp/*.log { copytruncate
  size 1
  rotate 1
}" >"$tmp/logrotate.conf"
chmod 644 "$tmp/logrotate.conf"

# Two services write a line of 7 bytes, wait for a word on their standard input, write another.
mkfifo "$tmp/one" "$tmp/two"
(echo "line 1" && read -r _ <"$tmp/one" && echo "line 2") >"$tmp/written.log" &
pids+=($!)
(echo "line 1" && read -r _ <"$tmp/two" && echo "line 2") >>"$tmp/appended.log" &
pids+=($!)
wait_for test -s "$tmp/written.log" -a -s "$tmp/appended.log"
logrotate --state "$tmp/state" "$tmp/logrotate.conf"
same "bytes after the rotation, >" 0 "$(stat -c %s "$tmp/written.log")"
echo go >"$tmp/one"
echo go >"$tmp/two"
wait_for test -s "$tmp/written.log" -a -s "$tmp/appended.log"

same "bytes after a second line, >" 14 "$(stat -c %s "$tmp/written.log")"
same "of them zeros" 7 "$(tr -cd '\0' <"$tmp/written.log" | wc -c)"
[[ $(grep line "$tmp/written.log" 2>&1) == *"binary file matches"* ]] || changed "grep finds text"
same "bytes after a second line, >>" 7 "$(stat -c %s "$tmp/appended.log")"
