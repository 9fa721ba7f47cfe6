#!/usr/bin/env bash
# nginx 1.22.1 of Debian 12: 502 for each request, while both servers are healthy.
#
# `upstream web { server A; server B; }` tries the other server when one refuses the connection, so
# a quick restart of A loses nothing. Then B is restarted, a second later.
# Expected: requests fail at most while a server is really down.
# Seen: A and B run again and answer 200, and nginx answers 502 to everybody, with "no live
# upstreams" in its log. One refused connection takes a server out for 10 seconds (`max_fails=1
# fail_timeout=10s`), and nginx does not look whether it is back.
# What helps: 10 seconds between the two restarts, or `max_fails=0`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian nginx=1.22.1-9+deb12u11 libssl3
same "version" "nginx version: nginx/1.22.1" "$(nginx -e "$tmp/error.log" -v 2>&1)"

front=$(free_port) a=$(free_port) b=$(free_port)
echo "daemon off;
  master_process off;
  pid $tmp/pid;
  events {}
  http {
    access_log off;
    client_body_temp_path $tmp/1;
    proxy_temp_path $tmp/2;
    fastcgi_temp_path $tmp/3;
    uwsgi_temp_path $tmp/4;
    scgi_temp_path $tmp/5;
    upstream web { server 127.0.0.1:$a; server 127.0.0.1:$b; }
    server { listen 127.0.0.1:$front; location / { proxy_pass http://web; } }
  }" >"$tmp/nginx.conf"
nginx -e "$tmp/error.log" -c "$tmp/nginx.conf" -p "$tmp" &
pids+=($!)
wait_for test -s "$tmp/pid"

seen=$(node -e '
  const http = require("node:http");
  const [front, a, b] = process.argv.slice(1);
  const servers = {};
  const start = (port) =>
    new Promise((done) => {
      servers[port] = http.createServer((_, response) => response.end());
      servers[port].listen(port, "127.0.0.1", done);
    });
  const stop = (port) => new Promise((done) => servers[port].close(done));
  const get = (port) =>
    new Promise((done) =>
      http.get({ host: "127.0.0.1", port, agent: false }, (response) => {
        response.resume().on("end", () => done(response.statusCode));
      })
    );
  const both = async () => `${await get(front)} ${await get(front)}`;
  (async () => {
    await start(a);
    await start(b);
    console.log("both run:", await both());
    await stop(a);
    console.log("A is down:", await both());
    await start(a);
    await stop(b);
    await get(front);
    await start(b);
    console.log("both run again, asked directly:", await get(a), await get(b));
    console.log("both run again, by nginx:", await both());
    await new Promise((done) => setTimeout(done, 11_000));
    console.log("11 seconds later, by nginx:", await both());
    process.exit();
  })();
' "$front" "$a" "$b")
same "seen" "both run: 200 200
A is down: 200 200
both run again, asked directly: 200 200
both run again, by nginx: 502 502
11 seconds later, by nginx: 200 200" "$seen"
grep -q "no live upstreams" "$tmp/error.log" || changed "the log has no 'no live upstreams'"
