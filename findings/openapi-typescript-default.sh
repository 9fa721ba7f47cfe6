#!/usr/bin/env bash
# openapi-typescript 7.13.0 (npm): a property with a default becomes one that is always there.
#
# It makes TypeScript types from an OpenAPI description. `reason` is not in `required`, and has a
# `default`, so a service may leave it out.
# Expected: `reason?: string`, as for each property that is not required.
# Seen: `reason: string`. So TypeScript accepts `health.reason.length`, and at run time `reason` is
# undefined: nothing between the service and the program fills a default in.
# What helps: `--default-non-nullable=false`.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

npm_packages openapi-typescript@7.13.0 typescript@5.9.3
same "version" "7.13.0" "$(version_of openapi-typescript)"

echo '{ "openapi": "3.1.0", "info": { "title": "web", "version": "1" }, "paths": {},
  "components": { "schemas": { "Health": { "type": "object", "required": ["status"],
    "properties": { "status": { "type": "string" }, "note": { "type": "string" },
      "reason": { "type": "string", "default": "none" } } } } } }' >"$tmp/openapi.json"
types() {
  (cd "$tmp" && openapi-typescript openapi.json "$@" 2>"$tmp/log") |
    grep -o -E '(status|note|reason)\??: string' | paste -sd ,
}
same "types" "status: string,note?: string,reason: string" "$(types)"
same "--default-non-nullable=false" "status: string,note?: string,reason?: string" \
  "$(types --default-non-nullable=false)"
