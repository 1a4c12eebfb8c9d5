"""What is in the repository: arrows that are kept, pinned requirements, nobody's own paths."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shape.source_tree import ROOT

# A path on somebody's machine. The home of `user` in prose is nobody's.
OWN_PATH = re.compile(
    r"(?<![\w.~-])(?:/(?:work/|root/|Users/\w|home/(?!user\b|maramoja\b)\w)|[A-Z]:\\Users)"
)
TEXT_MAX = 2_000_000


def tracked() -> list[Path]:
    """The files that are in the repository, or those that will be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # Outside a checkout nothing is checked, and that must not look like a pass.
    assert listed.returncode == 0, listed.stderr
    return [path for name in listed.stdout.split("\0") if (path := ROOT / name).is_file()]


def test_the_arrows_are_kept() -> None:
    program = Path(sys.executable).with_name("lint-imports")

    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    own = Path(__file__).resolve()
    found = []
    for path in tracked():
        if path == own or path.stat().st_size > TEXT_MAX:
            continue
        text = path.read_bytes().decode(errors="ignore")
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in OWN_PATH.finditer(text)]

    assert not found


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_requirements_are_pinned_and_name_no_index(name: str) -> None:
    text = (ROOT / name).read_text()

    assert "://" not in text
    assert "--" not in re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            assert re.match(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==\S+", line), line


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_what_is_asked_for_is_pinned(name: str) -> None:
    asked = re.findall(r"^([A-Za-z0-9._-]+)", (ROOT / f"{name}.in").read_text(), re.MULTILINE)
    pinned = re.findall(r"^([A-Za-z0-9._-]+)", (ROOT / f"{name}.txt").read_text(), re.MULTILINE)
    installed_elsewhere = re.findall(
        r"^([A-Za-z0-9._-]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )

    wanted = {_normal(package) for package in asked if not package.startswith("-")}
    assert wanted <= {_normal(package) for package in [*pinned, *installed_elsewhere]}


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
