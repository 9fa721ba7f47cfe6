#!/usr/bin/env bash
# Gunicorn 20.1.0 of Debian 12: the variable PORT changes the address as well.
#
# `gunicorn app:app` listens on 127.0.0.1 and port 8000, for a proxy on the same machine.
# Expected: the variable PORT means nothing to Gunicorn, or changes the port alone.
# Seen: with PORT=8001 in the environment, for another program or from a platform, it listens on
# 0.0.0.0 and port 8001: other machines now reach it without the proxy. HOST is not read.
# What helps: `--bind 127.0.0.1:8000`, which wins over PORT.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian gunicorn=20.1.0-6+deb12u1 python3-gunicorn=20.1.0-6+deb12u1 python3-pkg-resources \
  python3-setuptools
gunicorn() {
  (cd "$tmp" && python3 "$tmp/usr/bin/gunicorn" "$@")
}
same "version" "gunicorn (version 20.1.0)" "$(gunicorn --version)"

echo 'def app(environ, start): return []' >"$tmp/app.py"
address() {
  gunicorn --print-config "$@" app:app | grep ^bind | tr -s ' '
}
unset PORT
export HOST=127.0.0.1
same "no PORT" "bind = ['127.0.0.1:8000']" "$(address)"
export PORT=8001
same "PORT=8001" "bind = ['0.0.0.0:8001']" "$(address)"
same "PORT=8001 and --bind" "bind = ['127.0.0.1:8000']" "$(address --bind 127.0.0.1:8000)"
