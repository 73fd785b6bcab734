# syntax=docker/dockerfile:1.7
#
# The image of Chancery: one program, which everything but glibc is linked into, no shell, no root.

FROM rust:1.95-slim-bookworm AS build

# For OpenSSL, libpq and SQLite, which are built from source. Debian's point releases drop old
# versions from the mirrors, so a version named here would soon not be found.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make perl \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /build
COPY . .
# The caches stay on the machine that builds, so the program is copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --package chancery \
    && cp target/release/chancery /usr/local/bin/chancery

FROM gcr.io/distroless/cc-debian12:nonroot

ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="chancery" \
      org.opencontainers.image.description="Signs every record of a database exactly once, concurrently, and proves that it did." \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"

COPY LICENSE /usr/share/doc/chancery/LICENSE
COPY --from=build /usr/local/bin/chancery /usr/local/bin/chancery

# By number, so that an orchestrator can see that it is not root.
USER 65532:65532
WORKDIR /home/nonroot
ENTRYPOINT ["/usr/local/bin/chancery"]
CMD ["--help"]
