#!/usr/bin/env bash
# @opentelemetry/exporter-trace-otlp-http 0.223.0 (npm): a stop without a collector takes 8 seconds.
#
# A service sends its last spans before it ends, by `await provider.shutdown()`.
# Expected: where no collector listens, the connection is refused at once, and the stop goes on.
# Seen: a refused connection is tried again and again, with growing pauses, until the time-out of 10
# seconds is near: 7 to 9 seconds for one span. Together with the time for running requests that is
# more than the 10 seconds that `docker stop` grants.
# What helps: OTEL_EXPORTER_OTLP_TIMEOUT=1000.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

npm_packages @opentelemetry/exporter-trace-otlp-http@0.223.0 @opentelemetry/sdk-trace-base@2.12.1 \
  @opentelemetry/api@1.9.0
same "version" "0.223.0" "$(version_of @opentelemetry/exporter-trace-otlp-http)"

OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:$(free_port)
export OTEL_EXPORTER_OTLP_ENDPOINT
milliseconds() {
  (cd "$tmp" && node -e '
    const { BasicTracerProvider, BatchSpanProcessor } = require("@opentelemetry/sdk-trace-base");
    const { OTLPTraceExporter } = require("@opentelemetry/exporter-trace-otlp-http");
    const spanProcessors = [new BatchSpanProcessor(new OTLPTraceExporter())];
    const provider = new BasicTracerProvider({ spanProcessors });
    provider.getTracer("web").startSpan("GET /").end();
    const start = performance.now();
    const report = () => console.log(Math.round(performance.now() - start));
    provider.shutdown().then(report, report);
  ')
}
default=$(milliseconds)
short=$(OTEL_EXPORTER_OTLP_TIMEOUT=1000 milliseconds)
echo "shutdown: $default ms; with OTEL_EXPORTER_OTLP_TIMEOUT=1000: $short ms"
((default > 4000)) || changed "a shutdown without a collector is fast"
((short < 2000)) || changed "OTEL_EXPORTER_OTLP_TIMEOUT does not shorten it"
