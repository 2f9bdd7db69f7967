FROM rust:1.95-slim-bookworm AS build
WORKDIR /app

# Build the dependencies in their own layer, which is rebuilt only when the manifest or the lock file
# changes. (The image includes the C compiler that ring needs.) Tests and benches are not copied, so
# their targets are removed from the manifest.
COPY Cargo.toml Cargo.lock build.rs ./
RUN sed -i -e '/^\[\[test\]\]/,/^$/d' -e '/^\[\[bench\]\]/,/^$/d' Cargo.toml \
    && mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && rm -r src

# Copied files keep their modification times, which may be older than the build above. Without the
# touch, cargo would consider the empty crate up to date. The names of functions would be an eighth of the
# image, and nothing shows them: the log of a panic has its place in the source.
COPY src src
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked \
    && strip target/release/gemini-concurrent-generation \
    && mkdir /data

# This base has the C library, CA certificates and an unprivileged user, and no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /app/target/release/gemini-concurrent-generation /usr/local/bin/
# Jobs. A volume takes its owner from this folder.
COPY --from=build --chown=nonroot:nonroot /data /data
ENV HOST=0.0.0.0 DATA_DIR=/data
VOLUME /data
EXPOSE 5004
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/gemini-concurrent-generation", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/gemini-concurrent-generation"]
CMD ["serve"]
