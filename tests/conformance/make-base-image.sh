#!/usr/bin/env bash
# Makes a base image for the payload without a registry: the root of a Debian with Python 3.11 and pip, from
# Debian's own packages, unpacked and not configured. Writes it as a tar archive for `docker import`.
set -euo pipefail
archive=$1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/packages" "$work/root"
chmod 755 "$work" "$work/packages" "$work/root"
cd "$work/packages"
wanted=(python3.11 python3-pip python3-distutils libstdc++6)
mapfile -t all < <(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "${wanted[@]}" | grep -E '^[a-z0-9]' | grep -v ':i386' \
    | grep -Ev '^(perl|debconf|dpkg|tar|install-info|adduser|init-system-helpers|media-types|mailcap)|-dev|-perl' | sort -u)
apt-get download -q "${all[@]}" >/dev/null 2>&1 || apt-get download -q "${all[@]}" >/dev/null
for package in *.deb; do dpkg-deb -x "$package" "$work/root"; done
tar --create --file "$archive" --directory "$work/root" --sort=name --owner=0 --group=0 --numeric-owner .
