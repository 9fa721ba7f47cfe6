ARG DENO_VERSION=2.9.6

# deno compile makes executables for other processors, so the builder is never emulated; without
# docker.io Podman does not find it
FROM --platform=$BUILDPLATFORM docker.io/denoland/deno:${DENO_VERSION} AS builder
WORKDIR /build
ARG TARGETARCH
RUN case "$TARGETARCH" in \
      amd64) echo x86_64-unknown-linux-gnu ;; \
      arm64) echo aarch64-unknown-linux-gnu ;; \
      *) echo "TARGETARCH=$TARGETARCH is not supported, use amd64 or arm64" >&2; exit 1 ;; \
    esac >target
COPY deno.json deno.lock ./
COPY .deno-std .deno-std
# modules.ts has the imports of main.ts: this downloads std and the runtime, once for all changes
RUN cp .deno-std/modules.ts main.ts && \
    deno task compile --target "$(cat target)" && rm -r dist
COPY main.ts ./
# OpenTelemetry is fixed at compile time
ARG OTEL_DENO=false
RUN deno task compile --target "$(cat target)" && \
    touch --date @0 dist/devops-info-service

FROM gcr.io/distroless/cc-debian13:nonroot
LABEL org.opencontainers.image.title="devops-info-service" \
      org.opencontainers.image.description="Says what it is and where it runs, and whether it is well" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian13:nonroot"
COPY --from=builder --chmod=0555 /build/dist/devops-info-service /devops-info-service
# a number, so that Kubernetes can verify that it is not root
USER 65532:65532
# size the heap by the container's memory limit; do not wait long for a telemetry collector that hangs
ENV DENO_USE_CGROUPS=1 OTEL_SERVICE_NAME=devops-info-service OTEL_EXPORTER_OTLP_TIMEOUT=500
EXPOSE 5000
# start-interval makes it healthy after 2 s; the probe itself gives up after 2 s, with a message
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --start-interval=1s --retries=3 \
  CMD ["/devops-info-service", "--health"]
ENTRYPOINT ["/devops-info-service"]
