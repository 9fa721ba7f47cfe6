#!/usr/bin/env bash
# kubectl 1.20.2 (Debian 12) and dotenv 18.0.10 (npm): no way to write # that both read alike.
#
# One file of variables is used twice: by dotenv on a developer's machine, and in the cluster by
# `kubectl create configmap --from-env-file`.
# Expected: TOKEN=ab#cd is "ab#cd", as in a shell, or at least TOKEN="ab#cd" is.
# Seen: dotenv ends the value at #, also without a space in front: "ab". kubectl takes # and keeps
# the quotes as a part of the value. Each spelling is wrong in one of them, and neither complains.
# What helps: no # in a value.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian kubernetes-client=1.20.5+really1.20.2-1.1+deb12u1
npm_packages dotenv@18.0.10
export HOME=$tmp
same "kubectl" "Client Version: v1.20.2" "$(kubectl version --client --short)"
same "dotenv" "18.0.10" "$(version_of dotenv)"

cat >"$tmp/web.env" <<'EOF'
PLAIN=ab#cd
DOUBLE="ab#cd"
SINGLE='ab#cd'
BACKTICK=`ab#cd`
EOF
read_by_kubectl=$(kubectl create configmap web --from-env-file="$tmp/web.env" --dry-run=client \
  --output 'jsonpath={.data.PLAIN} {.data.DOUBLE} {.data.SINGLE} {.data.BACKTICK}')
read_by_dotenv=$(cd "$tmp" && node -p '
  const { PLAIN, DOUBLE, SINGLE, BACKTICK } = require("dotenv").parse(fs.readFileSync("web.env"));
  [PLAIN, DOUBLE, SINGLE, BACKTICK].join(" ")')
same "kubectl reads" "ab#cd \"ab#cd\" 'ab#cd' \`ab#cd\`" "$read_by_kubectl"
same "dotenv reads" "ab ab#cd ab#cd ab#cd" "$read_by_dotenv"
