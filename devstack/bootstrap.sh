#!/bin/sh
# Makes .venv and installs the pinned requirements into it; does nothing if that is already done.
# PYTHON= chooses the interpreter. Run from the repository's root: `make run`, `make test` do.
set -eu

venv=.venv
stamp=$venv/installed
wanted=$(cat requirements.txt requirements-dev.txt | cksum)

# A moved or incomplete environment fails here, and is made again.
works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

if works "$venv/bin/python" && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

fail() {
    echo "maramoja: $1" >&2
    echo "  → $2" >&2
    exit 1
}

choose_python() {
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        if works "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null; }

started=$(date +%s)
if ! works "$venv/bin/python"; then
    python=$(choose_python)
    if [ -z "$python" ]; then
        found=$(version_of "${PYTHON:-python3}" || echo "none")
        fail "Python 3.11 or newer is needed, and ${PYTHON:-python3} here is $found" \
            "install Python 3.11 to 3.13, or name one: make ${VERB:-run} PYTHON=/path/to/python3.11"
    fi
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" >"${TMPDIR:-/tmp}/maramoja-venv.$$" 2>&1; then
        tail -n 3 "${TMPDIR:-/tmp}/maramoja-venv.$$" >&2
        rm -rf "$venv" "${TMPDIR:-/tmp}/maramoja-venv.$$"
        fail "$python cannot make a virtual environment in $(pwd)/$venv" \
            "install its venv module (Debian: apt install python3-venv); see that the disk has 600 MB free"
    fi
    rm -f "${TMPDIR:-/tmp}/maramoja-venv.$$"
fi

# uv installs in seconds what pip takes a minute for. If uv fails (a proxy, a mirror that only pip is
# configured for, an unusual platform), pip installs the same pins. Both compile to bytecode: otherwise,
# with PYTHONDONTWRITEBYTECODE set, every process would compile again, for three seconds at each start.
# Both refuse a file whose hash differs from the pinned one. The files pin all packages (--no-deps): a
# pip of 2023 would look for newer versions of a library that is required with extras.
pip_install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes "$@"
}
install_uv() {
    # uv's line in the file, with the lines of its hashes.
    sed -n '/^uv==/,/[^\\]$/p' requirements-dev.txt >"$venv/uv.txt"
    pip_install -r "$venv/uv.txt" 2>/dev/null
}
with_uv() {
    { [ -x "$venv/bin/uv" ] || install_uv; } &&
        "$venv/bin/uv" pip install --quiet --compile-bytecode --require-hashes --python "$venv/bin/python" \
            -r requirements.txt -r requirements-dev.txt 2>/dev/null
}
if ! with_uv && ! pip_install -r requirements.txt -r requirements-dev.txt; then
    fail "the pinned requirements could not be installed" \
        "see pip's message above: is there a network, and 600 MB of disk?"
fi
echo "$wanted" >"$stamp"
echo "✓ environment   $(version_of "$venv/bin/python") in $venv, requirements installed ($(($(date +%s) - started)) s)"
