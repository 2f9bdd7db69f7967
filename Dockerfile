FROM rust:1.95-slim-bookworm AS build
WORKDIR /app

# The dependencies have a layer of their own: it is built anew only when the manifest or the lock
# file changes. (The C compiler that ring needs comes with the image.) The image holds no tests and
# no benches, so their targets leave the manifest, and their files need not be copied.
COPY Cargo.toml Cargo.lock build.rs ./
RUN sed -i -e '/^\[\[test\]\]/,/^$/d' -e '/^\[\[bench\]\]/,/^$/d' Cargo.toml \
    && mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && rm -r src

# Copied files keep their times, which may lie before the build above: without the touch, cargo
# would take the empty crate for up to date.
COPY src src
RUN touch src/lib.rs src/main.rs && cargo build --release --locked

# C library, CA certificates, an unprivileged user, and no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /app/target/release/gemini-concurrent-generation /usr/local/bin/
ENV HOST=0.0.0.0
EXPOSE 5004
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/gemini-concurrent-generation", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/gemini-concurrent-generation"]
CMD ["serve"]
