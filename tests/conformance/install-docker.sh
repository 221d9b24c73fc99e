#!/usr/bin/env bash
# Installs Debian's Docker engine, for the tests that build and run the payload's image. Needs root.
set -euo pipefail
if command -v dockerd >/dev/null && command -v dpkg-deb >/dev/null; then
    dockerd --version
    exit
fi
command -v apt-get >/dev/null || { echo "install-docker: apt-get is missing" >&2; exit 1; }
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
apt-get install -q -y --no-install-recommends docker.io >/dev/null
# The tests start an engine of their own.
systemctl disable --now docker.service docker.socket >/dev/null 2>&1 || true
dockerd --version
