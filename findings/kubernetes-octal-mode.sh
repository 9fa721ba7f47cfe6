#!/usr/bin/env bash
# kubectl 1.20.2 (Debian 12) and @kubernetes/client-node 1.4.0 (npm): one manifest, two file modes.
#
# `defaultMode: 0400` lets only its owner read a secret's files. Kubernetes' documentation writes it
# so, with a zero in front.
# Expected: the official client for JavaScript (`loadYaml`) reads a manifest as kubectl does.
# Seen: kubectl reads YAML 1.1, where 0400 is octal: 256. The client reads YAML 1.2, where it is the
# decimal number 400, and that is octal 0620: owner and group may write. Nothing fails.
# What helps: `defaultMode: 256`, or `0o400`, which both read as 256.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

debian kubernetes-client=1.20.5+really1.20.2-1.1+deb12u1
npm_packages @kubernetes/client-node@1.4.0
export HOME=$tmp
same "kubectl" "Client Version: v1.20.2" "$(kubectl version --client --short)"
same "client-node" "1.4.0" "$(version_of @kubernetes/client-node)"

manifest() {
  cat >"$tmp/manifest.yaml" <<EOF
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers: [{name: web, image: web}]
  volumes: [{name: key, secret: {secretName: key, defaultMode: $1}}]
EOF
}
by_kubectl() {
  kubectl label --local --filename "$tmp/manifest.yaml" --output \
    'jsonpath={.spec.volumes[0].secret.defaultMode}' any=label
}
by_client() {
  (cd "$tmp" && node --input-type=module -e '
    import { readFileSync } from "node:fs";
    import { loadYaml } from "@kubernetes/client-node";
    const pod = loadYaml(readFileSync("manifest.yaml", "utf8"));
    console.log(pod.spec.volumes[0].secret.defaultMode);
  ')
}

manifest 0400
same "0400 in kubectl" 256 "$(by_kubectl)"
same "0400 in client-node" 400 "$(by_client)"
manifest 0o400
same "0o400 in kubectl" 256 "$(by_kubectl)"
same "0o400 in client-node" 256 "$(by_client)"
