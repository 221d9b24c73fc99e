#!/bin/sh
# Resolve the three lock files anew: names, versions and hashes, for every supported Python, and no addresses.
set -eu
cd "$(dirname "$0")/.."
resolve() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-header --no-annotate "$@"
}
resolve --extra local --group dev pyproject.toml -o requirements/dev.txt
# The other two follow the first, so that what is tested is what runs.
resolve --extra local --group build -c requirements/dev.txt pyproject.toml -o requirements/run.txt
resolve -c requirements/dev.txt enclave_payload/pyproject.toml -o enclave_payload/requirements.txt
