#!/bin/sh
# Installs folio from a release, for Linux and macOS:
#
#   curl -fsSL https://github.com/OWNER/folio/releases/latest/download/install.sh | sh
#
# Variables:
#   FOLIO_INSTALL_DIR   where the program goes [default: ~/.local/bin]
#   FOLIO_VERSION       a version such as 0.1.0 [default: the latest]
#   FOLIO_DOWNLOADS     the address of a release's files, for mirrors
#
# The archive is verified with the release's SHA256SUMS before anything is written to the directory.
set -eu

main() {
    dir=${FOLIO_INSTALL_DIR:-${HOME:?"is not set; set FOLIO_INSTALL_DIR to the directory to install to"}/.local/bin}
    releases=https://github.com/OWNER/folio/releases
    if [ -n "${FOLIO_DOWNLOADS:-}" ]; then
        downloads=$FOLIO_DOWNLOADS
    elif [ -n "${FOLIO_VERSION:-}" ]; then
        downloads=$releases/download/v${FOLIO_VERSION#v}
    else
        downloads=$releases/latest/download
    fi
    target=$(target)
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM

    download "$downloads/SHA256SUMS" "$tmp/SHA256SUMS"
    archive=$(sed -n "s/^[0-9a-f]\{64\} [ *]\(folio-[0-9][0-9A-Za-z.+-]*-$target\.tar\.gz\)\$/\1/p" "$tmp/SHA256SUMS")
    if [ -z "$archive" ] || [ "$(printf '%s\n' "$archive" | wc -l)" -ne 1 ]; then
        fail "$downloads/SHA256SUMS does not list one archive for $target"
    fi
    download "$downloads/$archive" "$tmp/$archive"
    want=$(sed -n "s/^\([0-9a-f]\{64\}\) [ *]$archive\$/\1/p" "$tmp/SHA256SUMS")
    got=$(sha256 "$tmp/$archive")
    if [ "$got" != "$want" ]; then
        fail "$archive has the SHA-256 $got, but the release lists $want; download it again, and do not use it if that repeats"
    fi

    tar -xzf "$tmp/$archive" -C "$tmp"
    mkdir -p "$dir" || fail "cannot create $dir; set FOLIO_INSTALL_DIR to a directory you can write to"
    # A rename replaces a running program safely; a copy would not.
    cp "$tmp/${archive%.tar.gz}/folio" "$dir/.folio.new" ||
        fail "cannot write to $dir; set FOLIO_INSTALL_DIR to a directory you can write to"
    chmod 755 "$dir/.folio.new"
    mv -f "$dir/.folio.new" "$dir/folio"
    echo "installed $("$dir/folio" --version) to $dir/folio"
    case ":$PATH:" in
    *":$dir:"*) ;;
    *) echo "add $dir to PATH: export PATH=\"$dir:\$PATH\"" ;;
    esac
}

# The target of this machine. On Linux the static program, which needs no particular C library.
target() {
    case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux amd64") echo x86_64-unknown-linux-musl ;;
    "Linux aarch64" | "Linux arm64") echo aarch64-unknown-linux-musl ;;
    "Darwin arm64") echo aarch64-apple-darwin ;;
    "Darwin x86_64") echo x86_64-apple-darwin ;;
    *) fail "there is no program for $(uname -sm); build it with cargo: $releases/.." ;;
    esac
}

download() {
    if command -v curl >/dev/null; then
        curl -fsSL --retry 3 -o "$2" "$1" || fail "cannot download $1"
    elif command -v wget >/dev/null; then
        wget -q -O "$2" "$1" || fail "cannot download $1"
    else
        fail "neither curl nor wget is installed"
    fi
}

sha256() {
    if command -v sha256sum >/dev/null; then
        sha256sum "$1" | cut -d ' ' -f 1
    else
        shasum -a 256 "$1" | cut -d ' ' -f 1
    fi
}

fail() {
    echo "install.sh: $1" >&2
    exit 1
}

# Called last, so that a download that breaks off runs nothing.
main
