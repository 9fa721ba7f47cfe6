ARG DENO_VERSION=2.9.6

# deno compiles for other processors than its own, so the builder never runs emulated
FROM --platform=$BUILDPLATFORM denoland/deno:${DENO_VERSION} AS builder
WORKDIR /build
ARG TARGETARCH
RUN case "$TARGETARCH" in \
      amd64) echo x86_64-unknown-linux-gnu ;; \
      arm64) echo aarch64-unknown-linux-gnu ;; \
      *) echo "no Deno for TARGETARCH=$TARGETARCH: amd64 and arm64 are" >&2; exit 1 ;; \
    esac >target
COPY deno.json deno.lock ./
COPY .deno-std .deno-std
# a stand-in for the source brings std and the runtime to embed into a layer that outlives changes of the source
RUN cp .deno-std/modules.ts main.ts && \
    deno task compile --target "$(cat target)" && rm -r dist
COPY main.ts ./
# OpenTelemetry is decided here, for good; with it, console lines are exported and not printed as well
ARG OTEL_DENO=false
RUN if [ "$OTEL_DENO" = true ]; then export OTEL_DENO_CONSOLE=replace; fi && \
    deno task compile --target "$(cat target)" && \
    touch --date @0 dist/devops-info-service

FROM gcr.io/distroless/cc-debian13:nonroot
LABEL org.opencontainers.image.title="devops-info-service" \
      org.opencontainers.image.description="Says what it is and where it runs, and whether it is well" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian13:nonroot"
COPY --from=builder --chmod=0555 /build/dist/devops-info-service /devops-info-service
# by number, so that Kubernetes can see that it is not root
USER 65532:65532
# the heap follows the container's memory limit; a collector that does not answer holds up neither probe nor stop
ENV DENO_USE_CGROUPS=1 OTEL_EXPORTER_OTLP_TIMEOUT=500
EXPOSE 5000
# the probe gives up after 2 s by itself and then says so
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["/devops-info-service", "--health"]
ENTRYPOINT ["/devops-info-service"]
