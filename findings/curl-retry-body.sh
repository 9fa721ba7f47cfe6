#!/usr/bin/env bash
# curl 7.88.1 of Debian 12: `--retry` also prints the answers that it gave up.
#
# `curl -s --retry 3 URL | jq .` waits for a service that answers 503 while it starts.
# Expected: the answer of the last try. `-o FILE` keeps just that one.
# Seen: on standard output are the bodies of all tries in a row, and the exit code is 0:
# {"try":1}{"try":2}{"try":3}
# It bites where the output is one JSON text or one word for a script. `-f` hides the bodies of
# errors; `--fail-with-body` does not help.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian curl=7.88.1-10+deb12u15 libcurl4=7.88.1-10+deb12u15 \
  libnghttp2-14 librtmp1 libssh2-1 libpsl5 libldap-2.5-0 libsasl2-2 libbrotli1 libssl3 \
  libgssapi-krb5-2 libkrb5-3 libk5crypto3 libkrb5support0 libkeyutils1
[[ $(curl --version) == "curl 7.88.1 "* ]] || changed "version: $(curl --version | head -n 1)"

# Two of three answers are a 503.
handler='response.statusCode = count % 3 ? 503 : 200; response.end(`{"try":${count}}`)'
serve "$handler"
url=http://127.0.0.1:$port/
same "standard output" '{"try":1}{"try":2}{"try":3}' "$(curl -qs --retry 3 --retry-delay 1 "$url")"
curl -qs --retry 3 --retry-delay 1 -o "$tmp/file" "$url"
same "-o FILE" '{"try":6}' "$(<"$tmp/file")"
