#!/usr/bin/env bash
# Installs nitro-cli as cargo installs programs. Needs cargo, a C compiler, pkg-config and libssl-dev.
set -euo pipefail
version=1.5.2
if nitro-cli --version 2>/dev/null | grep -qF "$version"; then
    echo "nitro-cli $version is installed"
    exit
fi
for tool in cargo cc pkg-config; do
    command -v "$tool" >/dev/null || { echo "install-nitro-cli: $tool is missing" >&2; exit 1; }
done
pkg-config --exists openssl || { echo "install-nitro-cli: libssl-dev is missing" >&2; exit 1; }
# The build takes minutes, the work seconds.
CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=false \
    cargo install --quiet aws-nitro-enclaves-cli --version "=$version" --force
