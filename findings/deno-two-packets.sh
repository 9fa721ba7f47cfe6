#!/usr/bin/env bash
# Deno 2.9.6 (npm): from 513 bytes on, an answer comes in two packets, and the first has no body.
#
# A small monitor or device often reads a socket once and looks for a word of the body.
# Expected: an answer of a few hundred bytes, which fits into one packet, comes in one.
# Seen: Deno.serve sends head and body together while both fit into 512 bytes. One byte more, and
# it sends the head alone, then the body. Such a check works until the answer gets one more field;
# then it fails now and then, as the second packet comes in time or not. Read until Content-Length.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

npm_packages deno@2.9.6
export DENO_DIR=$tmp/deno DENO_NO_UPDATE_CHECK=1
[[ $(deno --version) == "deno 2.9.6 "* ]] || changed "version: $(deno --version | head -n 1)"

cat >"$tmp/server.ts" <<'CODE'
Deno.serve(
  { hostname: "127.0.0.1", port: 0, onListen: ({ port }) => console.log(port) },
  (request) => new Response("x".repeat(Number(request.url.split("/").pop()))),
);
CODE
deno run --no-config --allow-net "$tmp/server.ts" >"$tmp/port" &
pids+=($!)
wait_for test -s "$tmp/port"

# ask BYTES: how long an answer with so long a body is, and Linux' count of packets that had data.
ask() {
  python3 -c '
import socket, struct, sys
port, size = sys.argv[1:]
client = socket.create_connection(("127.0.0.1", int(port)), timeout=10)
client.sendall(f"GET /{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
answer = b""
while len(answer.partition(b"\r\n\r\n")[2]) < int(size):
    answer += client.recv(65536)
info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
(packets,) = struct.unpack_from("I", info, 152)  # tcpi_data_segs_in
print(f"{len(answer)} bytes in {packets} packet(s)")
  ' "$(<"$tmp/port")" "$1"
}
same "a body of 395 bytes" "512 bytes in 1 packet(s)" "$(ask 395)"
same "a body of 396 bytes" "513 bytes in 2 packet(s)" "$(ask 396)"
