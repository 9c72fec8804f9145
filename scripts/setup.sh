#!/bin/sh
# Makes .venv in the checkout and installs what constraints.txt pins. Touches nothing outside the checkout.
# PYTHON=/path/to/python chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."

fits() {
    "$1" -c 'import sys; sys.exit(not (sys.version_info >= (3, 11) and sys.implementation.name == "cpython"))' \
        >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    fits "$PYTHON" || { echo "setup: PYTHON=$PYTHON is not CPython 3.11 or later" >&2; exit 1; }
else
    for candidate in python3.11 python3 python3.12 python3.13 /usr/bin/python3; do
        if fits "$candidate"; then PYTHON=$candidate; break; fi
    done
fi
if [ -z "${PYTHON:-}" ]; then
    echo "setup: no CPython 3.11 or later found (python3 is: $(python3 --version 2>&1 || true))." >&2
    echo "       Install it (Debian, Ubuntu: apt install python3.11 python3.11-venv), or say where it is:" >&2
    echo "       make setup PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if ! "$PYTHON" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    echo "setup: $PYTHON has no venv module (Debian, Ubuntu: apt install python3-venv)." >&2
    exit 1
fi
compiler=${CXX:-c++}
if ! command -v "${compiler%% *}" >/dev/null 2>&1; then # CXX may hold options
    echo "setup: no C++ compiler found as $compiler (Debian, Ubuntu: apt install g++; or set CXX)." >&2
    exit 1
fi

# An environment that no longer starts (moved checkout, removed interpreter) is made anew.
if [ -e .venv ] && ! { grep -qF -- "-m venv $(pwd -P)/.venv" .venv/pyvenv.cfg &&
    .venv/bin/python -c 'import pip' >/dev/null 2>&1; }; then
    rm -rf .venv
fi
if [ ! -e .venv ]; then
    echo "setup: making .venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv .venv
fi
echo "setup: installing the packages of constraints.txt"
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
pip install --quiet --constraint constraints.txt scikit-build-core nanobind cmake ninja
echo "setup: compiling the native engine"
pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
