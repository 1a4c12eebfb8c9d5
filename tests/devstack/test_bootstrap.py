"""The first minute on a machine: which Python is used, and what is said when none fits."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from devstack.programs import ROOT

TOOLS = ("awk", "cat", "cksum", "date", "make", "rm", "sed", "sh", "tail")
OLD = """#!/bin/sh
case "$*" in
    *python_version*) echo 3.9.2 ;;
    *) exit 1 ;;
esac
"""
# Passes as new enough, and can't make a virtual environment, like Debian's by default.
WITHOUT_VENV = """#!/bin/sh
case "$*" in
    *venv*) echo "ensurepip is not available"; exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "devstack").mkdir()
    for name in ("Makefile", "devstack/bootstrap.sh", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def make(checkout: Path, *arguments: str, python: str | None) -> subprocess.CompletedProcess[str]:
    if python is not None:
        program = checkout / "bin" / "python3"
        program.write_text(python)
        program.chmod(0o755)
    return subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env={"PATH": str(checkout / "bin")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("verb", ["run", "test"])
def test_a_python_that_is_too_old_is_named(checkout: Path, verb: str) -> None:
    done = make(checkout, verb, python=OLD)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed, and python3 here is 3.9.2" in done.stderr
    assert f"make {verb} PYTHON=" in done.stderr


def test_no_python_at_all_is_said(checkout: Path) -> None:
    done = make(checkout, "run", python=None)
    assert "Python 3.11 or newer is needed, and python3 here is none" in done.stderr


def test_a_python_without_venv_is_said_and_leaves_nothing(checkout: Path) -> None:
    done = make(checkout, "run", python=WITHOUT_VENV)
    assert done.returncode != 0
    assert "ensurepip is not available" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def test_make_alone_lists_the_verbs(checkout: Path) -> None:
    done = make(checkout, python=None)
    assert done.returncode == 0
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert {"run", "test", "check", "fix", "migrate", "openapi", "clean"} <= listed


# It makes an environment, and runs pip several times.
@pytest.mark.timeout(360)
def test_a_library_with_another_hash_is_not_installed(checkout: Path) -> None:
    wheel = a_wheel(checkout / "index")
    (checkout / "requirements-dev.txt").write_text("")
    installed = checkout / ".venv/installed"

    done = bootstrap_with(checkout, hashlib.sha256(b"another").hexdigest())
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert "could not be installed" in done.stderr
    assert not installed.exists()

    done = bootstrap_with(checkout, hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert done.returncode == 0, done.stderr
    assert installed.exists()
    subprocess.run([checkout / ".venv/bin/python", "-c", "import tiny"], check=True)


def bootstrap_with(checkout: Path, digest: str) -> subprocess.CompletedProcess[str]:
    """Run bootstrap with one pin that has this hash, and without a network."""
    pin = f"tiny==1.0 \\\n    --hash=sha256:{digest}\n"
    (checkout / "requirements.txt").write_text(pin)
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(checkout / "index")}
    return subprocess.run(
        ["/bin/sh", "devstack/bootstrap.sh"],
        cwd=checkout,
        env={"PATH": os.environ["PATH"], "PYTHON": sys.executable, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def a_wheel(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "tiny-1.0-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
    form = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with ZipFile(path, "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", about)
        wheel.writestr("tiny-1.0.dist-info/WHEEL", form)
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return path
