#!/usr/bin/env bash
# Writes build.txt, cpu.txt and gpu.txt from pyproject.toml: every package with its version and hashes, for CPython 3.11 and newer.
# Versions that a lock already names are kept while they fit; UPGRADE=1 moves all to the newest that fit.
# usage: locks/compile.sh [PYTHON]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV_VERSION=0.13.9
readonly tools=.venv-tools
if [ ! -x "$tools/bin/uv" ] || [ "$("$tools/bin/uv" --version | cut -d' ' -f2)" != "$UV_VERSION" ]; then
    "${1:-python3}" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet "uv==$UV_VERSION"
fi

compile() {
    # No index, no local path and no host may reach a lock: what is compiled on one machine installs on any other.
    "$tools/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
        ${UPGRADE:+--upgrade} "$@"
}

compile locks/build.in --output-file locks/build.txt
compile pyproject.toml --config-file locks/cpu.toml --extra cpu --extra dev --extra tools --extra trackers \
    --constraints locks/build.txt --no-emit-package torch --output-file locks/cpu.txt
compile pyproject.toml --extra gpu --extra dev --extra tools --extra trackers \
    --constraints locks/build.txt --constraints locks/gpu.in --output-file locks/gpu.txt

if grep -nE 'file://|https?://|--(extra-)?index-url|--find-links' locks/build.txt locks/cpu.txt locks/gpu.txt; then
    echo "error: a lock names a place (lines above): it would not install elsewhere" >&2
    exit 1
fi
