#!/usr/bin/env bash
# HTTPie 3.2.1 of Debian 12: the same command is a GET in a terminal and a POST in cron.
#
# `http URL` sends GET when a person types it. Without a terminal as standard input (cron, CI, ssh,
# `docker run` without -t, a pipe) HTTPie takes standard input as the body, even if it is empty.
# Expected: GET, and in doubt only a body that is there.
# Seen: POST /health. A service that knows only GET answers 405, and the exit code is still 0, so
# nobody notices. What helps: `--ignore-stdin`, and `--check-status` for the exit code.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian httpie=3.2.1-1 python3-charset-normalizer python3-defusedxml python3-multidict \
  python3-pkg-resources python3-pygments python3-requests python3-requests-toolbelt python3-rich \
  python3-socks python3-urllib3 python3-idna python3-certifi python3-chardet
export HOME=$tmp MULTIDICT_NO_EXTENSIONS=1
http=(python3 "$tmp/usr/bin/http")
same "version" 3.2.1 "$("${http[@]}" --version)"

serve 'response.statusCode = request.method === "GET" ? 200 : 405; response.end()'
url=http://127.0.0.1:$port/health
"${http[@]}" "$url" </dev/null >"$tmp/out" || changed "the exit code is no longer 0"
same "without a terminal" "POST /health HTTP/1.1" "$(<"$tmp/requests")"
"${http[@]}" --ignore-stdin "$url" </dev/null >"$tmp/out"
same "--ignore-stdin" "GET /health HTTP/1.1" "$(tail -n 1 "$tmp/requests")"
