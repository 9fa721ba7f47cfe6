#!/usr/bin/env bash
# What the findings use: a temporary folder with pinned packages, a small server, three exit codes.
# At the end, however it ends, the folder and the processes are gone.

tmp=$(mktemp -d)
pids=()
export LC_ALL=C no_proxy=127.0.0.1 NO_PROXY=127.0.0.1
PATH=$tmp/node_modules/.bin:$tmp/usr/sbin:$tmp/usr/bin:$PATH

finish() {
  local pid
  exec 2>/dev/null # bash would report each process that it kills
  for pid in "${pids[@]}"; do kill "$pid" || true; done
  for pid in "${pids[@]}"; do
    for _ in {1..30}; do
      kill -0 "$pid" || continue 2
      sleep 0.1
    done
    kill -KILL "$pid" || true
  done
  wait
  rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 2' INT TERM

cannot() {
  echo "could not run: $*" >&2
  exit 2
}

changed() {
  echo "changed: $*" >&2
  exit 1
}

# same WHAT EXPECTED SEEN: prints what was seen; exit code 1 if it is something else.
same() {
  [[ $3 == "$2" ]] || changed "$1: expected '$2', saw '$3'"
  echo "$1: $3"
}

# debian NAME=VERSION…: Debian packages, unpacked into the folder. Libraries need no version.
debian() {
  (cd "$tmp" && apt-get download -qq "$@" >"$tmp/apt.log" 2>&1) ||
    cannot "$* (Debian 12 of 2026-11-29; is 'apt-get update' missing?): $(tail -n 1 "$tmp/apt.log")"
  local deb
  for deb in "$tmp"/*.deb; do dpkg-deb -x "$deb" "$tmp"; done
  rm "$tmp"/*.deb
  LD_LIBRARY_PATH=$(printf '%s:' "$tmp"/lib/*-linux-gnu "$tmp"/usr/lib/*-linux-gnu)
  export LD_LIBRARY_PATH PYTHONPATH=$tmp/usr/lib/python3/dist-packages
}

# npm_packages NAME@VERSION…: packages of npm, installed into the folder.
npm_packages() {
  (cd "$tmp" && npm install --prefix "$tmp" --no-audit --no-fund --loglevel=error "$@") \
    >"$tmp/npm.log" 2>&1 || cannot "npm cannot install $*: $(sed -n 2p "$tmp/npm.log")"
}

version_of() {
  node -p 'require(process.argv[1]).version' "$tmp/node_modules/$1/package.json"
}

# wait_for COMMAND…: until it succeeds, 20 seconds at most.
wait_for() {
  for _ in {1..200}; do
    if "$@" >"$tmp/wait.log" 2>&1; then return; fi
    sleep 0.1
  done
  cannot "waited 20 seconds in vain for: $*"
}

# serve HANDLER: a server on 127.0.0.1 and $port, which the system chose. HANDLER is JavaScript with
# `request`, `response` and `count`. Each request becomes a line of $tmp/requests.
serve() {
  : >"$tmp/requests"
  node -e '
    const handler = new Function("request", "response", "count", process.argv[1]);
    let count = 0;
    const server = require("node:http").createServer((request, response) => {
      const { method, url, httpVersion } = request;
      require("node:fs").appendFileSync(process.argv[2], `${method} ${url} HTTP/${httpVersion}\n`);
      handler(request, response, ++count);
    });
    server.listen(0, "127.0.0.1", () => console.log(server.address().port));
  ' "$1" "$tmp/requests" >"$tmp/port" &
  pids+=($!)
  wait_for test -s "$tmp/port"
  # shellcheck disable=SC2034 # the scripts read it
  port=$(<"$tmp/port")
}

# A port of 127.0.0.1 on which nothing listens.
free_port() {
  node -e '
    const server = require("node:net").createServer().listen(0, "127.0.0.1", () => {
      console.log(server.address().port);
      server.close();
    });'
}
