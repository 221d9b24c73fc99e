#!/usr/bin/env bash
# Installs eif-tool (see eif_tool/src/main.rs) as cargo installs programs: AWS's own code for enclave images,
# as nitro-cli 1.5.2 has it. Needs cargo, a C compiler, pkg-config and libssl-dev.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

wanted=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/eif_tool/Cargo.toml")
if [ "$(eif-tool version 2>/dev/null)" = "$wanted" ]; then
    echo "eif-tool $wanted is installed"
    exit
fi
for tool in cargo cc pkg-config; do
    command -v "$tool" >/dev/null || { echo "install-eif-tools: $tool is missing" >&2; exit 1; }
done
pkg-config --exists openssl || { echo "install-eif-tools: libssl-dev is missing" >&2; exit 1; }

# Built elsewhere: nothing is left in the source tree.
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
cp -r "$here/eif_tool" "$build/source"
cargo install --quiet --path "$build/source" --target-dir "$build/target" --force
