# The server as an image of one static program, which runs as an ordinary user: docs/install.md has the commands.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
RUN rustup target add "$(uname -m)-unknown-linux-musl"
COPY . .
RUN target="$(uname -m)-unknown-linux-musl" \
    && cargo build --release --locked --package folio-cli --target "$target" \
    && mkdir -p /image/data/runs \
    && cp "target/$target/release/folio" /image/folio

FROM scratch
COPY --from=build /image/folio /folio
COPY --from=build --chown=65532:65532 /image/data /data
USER 65532:65532
WORKDIR /data
EXPOSE 8080
ENTRYPOINT ["/folio"]
CMD ["serve", "--host", "0.0.0.0"]
