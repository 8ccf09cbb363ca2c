#!/usr/bin/env bash
# Makes the project's environment from the locks: locks/install.sh cpu|gpu
#
#   VENV         where it goes (.venv)
#   PYTHON       the Python to build it with (the first of python3, python3.13, python3.12, python3.11 that fits)
#   TORCH_INDEX  where the CPU build of PyTorch comes from when pip's own configuration does not have it
#
# A digest of everything that decides the result stands in $VENV/.installed: while it agrees, nothing is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

flavour=${1:?usage: locks/install.sh cpu|gpu}
VENV=${VENV:-.venv}
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
readonly stamp=$VENV/.installed

die() {
    printf 'error: %s\n' "$@" >&2
    exit 1
}

case $flavour in
cpu) locks=(locks/build.txt locks/torch-cpu.txt locks/cpu.txt) newest=13 pythons="CPython 3.11, 3.12 or 3.13" ;;
# A library that the CUDA build of vLLM needs has no wheels for 3.13.
gpu) locks=(locks/build.txt locks/gpu.txt) newest=12 pythons="CPython 3.11 or 3.12" ;;
*) die "no such environment: $flavour (cpu or gpu)" ;;
esac

fits() { "$1" -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" >/dev/null 2>&1; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || die "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 || true): $pythons is needed"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if fits "$candidate"; then
            PYTHON=$candidate
            return
        fi
    done
    die "$pythons is needed; python3 here is: $(python3 --version 2>&1 || true)" \
        "install one, or name it: make setup PYTHON=/path/to/python3.11"
}

digest() {
    { echo "$flavour $PWD" && cat pyproject.toml "${locks[@]}" locks/install.sh; } | "$PYTHON" -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

check_machine() {
    [ "$(uname -sm)" = "Linux x86_64" ] || die "the locks are for Linux on x86_64, this is $(uname -sm)"
    command -v g++ >/dev/null ||
        die "g++ is missing: DeepSpeed and vLLM compile small extensions when they first run (Debian: apt-get install g++)"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$PYTHON cannot make virtual environments (Debian: apt-get install python3-venv)"
    "$PYTHON" -c 'import os, sysconfig as s; raise SystemExit(not os.path.exists(s.get_path("include") + "/Python.h"))' ||
        die "the headers of $PYTHON are missing: the extensions need Python.h (Debian: apt-get install python3-dev)"
}

make_venv() {
    # The two kinds of vLLM overwrite each other's files, so another flavour starts from an empty environment.
    if [ -e "$VENV" ] && { ! fits "$VENV/bin/python" || [ "$(cat "$VENV/.flavour" 2>/dev/null)" != "$flavour" ]; }; then
        echo "replacing $VENV: it is not a working $flavour environment"
        [ -f "$VENV/pyvenv.cfg" ] || die "$VENV is not a virtual environment: not touched"
        rm -rf "$VENV"
    fi
    [ -e "$VENV" ] || "$PYTHON" -m venv "$VENV"
    echo "$flavour" >"$VENV/.flavour"
}

# Only DeepSpeed ships as source; it is built with the locked setuptools of build.txt, not with one that pip fetches for it.
pip_install() {
    "$VENV/bin/python" -m pip --disable-pip-version-check --no-input install --no-deps --no-build-isolation --progress-bar off "$@"
}
pip_locked() { pip_install --require-hashes --only-binary :all: --no-binary deepspeed "$@"; }

install_torch_cpu() {
    echo "torch, CPU build: looking where pip is configured to look"
    pip_locked -r locks/torch-cpu.txt && return
    echo "torch, CPU build: not taken from there (pip says why above); trying $TORCH_INDEX"
    pip_locked --index-url "$TORCH_INDEX" -r locks/torch-cpu.txt && return
    die "no CPU build of torch could be installed (pip says why above): set TORCH_INDEX to an index that has it, or PIP_FIND_LINKS to a folder with its wheel"
}

find_python
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(digest)" ] && fits "$VENV/bin/python"; then
    exit 0
fi
check_machine
make_venv
rm -f "$stamp"
pip_locked -r locks/build.txt
if [ "$flavour" = cpu ]; then
    install_torch_cpu
fi
pip_locked -r "locks/$flavour.txt"
pip_install --quiet --editable .
digest >"$stamp"
echo "environment ready: $VENV ($flavour)"
