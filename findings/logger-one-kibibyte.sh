#!/usr/bin/env bash
# logger of util-linux 2.38.1 (Debian 12): a log line ends after 1,024 bytes.
#
# `service | logger` and `logger "$line"` hand log lines to syslog or journald.
# Expected: a line of 1,250 bytes, such as JSON with a long path, arrives whole.
# Seen: from standard input it arrives as two messages, and none of them is JSON. As an argument its
# first 1,024 bytes arrive and the rest is thrown away. The exit code is 0 and nothing is said.
# What helps: `--size 8192`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian bsdutils=1:2.38.1-5+deb12u3
same "version" "logger from util-linux 2.38.1" "$(logger --version)"

# A syslog server, which writes down how many x each message has.
node -e '
  const socket = require("node:dgram").createSocket("udp4");
  const note = (line) => require("node:fs").appendFileSync(process.argv[1], line + "\n");
  socket.on("message", (data) => note(String(data).match(/xx+/)[0].length));
  socket.bind(0, "127.0.0.1", () => console.log(socket.address().port));
' "$tmp/messages" >"$tmp/port" &
pids+=($!)
wait_for test -s "$tmp/port"

line=$(printf 'x%.0s' {1..1250})
send() {
  logger --udp --server 127.0.0.1 --port "$(<"$tmp/port")" --tag web "$@"
  sleep 1
  paste -sd ' ' "$tmp/messages"
  : >"$tmp/messages"
}
same "1,250 bytes by standard input, messages" "1024 226" "$(send <<<"$line")"
same "1,250 bytes as an argument, messages" "1024" "$(send "$line")"
same "the same with --size 8192, messages" "1250" "$(send --size 8192 "$line")"
