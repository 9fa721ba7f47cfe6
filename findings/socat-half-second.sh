#!/usr/bin/env bash
# socat 1.7.4.4 of Debian 12: an answer that takes longer than half a second is lost, exit code 0.
#
# `printf 'GET / HTTP/1.0\r\n\r\n' | socat - TCP:HOST:PORT` is a usual way to send raw HTTP. When
# standard input ends, socat closes that direction and waits 0.5 seconds for the other (option -t).
# Expected: socat reads until the server closes the connection, as curl does.
# Seen: a fast answer is printed. Of an answer after 1 second nothing is printed, there is no
# message, and the exit code is 0. What helps: -t 30.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian socat=1.7.4.4-2 libwrap0 libnsl2 libtirpc3 libssl3 \
  libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0
[[ $(socat -V) == *"socat version 1.7.4.4 "* ]] || changed "version: $(socat -V | head -n 2)"

# A server that reads a request, waits for as many seconds as its path says, and answers.
python3 -c '
import socket, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    client = server.accept()[0]
    time.sleep(int(client.recv(1000).split()[1][1:]))
    client.sendall(b"HTTP/1.0 200 OK\r\n\r\nanswer\n")
    client.close()
' >"$tmp/port" 2>"$tmp/server.log" &
pids+=($!)
wait_for test -s "$tmp/port"

ask() {
  local code=0
  printf 'GET /%s HTTP/1.0\r\n\r\n' "$1" |
    socat "${@:2}" - "TCP:127.0.0.1:$(<"$tmp/port")" >"$tmp/out" || code=$?
  echo "'$(tail -n 1 "$tmp/out")', exit code $code"
}
same "answer at once" "'answer', exit code 0" "$(ask 0)"
same "answer after 1 second" "'', exit code 0" "$(ask 1)"
same "answer after 1 second, -t 30" "'answer', exit code 0" "$(ask 1 -t 30)"
