"""No password is in the arguments of the backup scripts' programs, where `ps` would show it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.shape.source_tree import ROOT

PASSWORD = "s3cret"
# Stands in for a program of PostgreSQL: records how it was called, and creates the file.
PROGRAM = """#!/bin/sh
echo "$0 $* | $PGPASSWORD" >> "$CALLS"
for word; do case $word in --file=*) : > "${word#--file=}";; esac; done
case $* in *count*) echo 0;; esac
"""


def run(folder: Path, script: str, address: str) -> subprocess.CompletedProcess[str]:
    for name in ("pg_dump", "pg_restore", "psql"):
        (folder / name).write_text(PROGRAM, encoding="ascii")
        (folder / name).chmod(0o700)
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        f"{script.upper()}_DATABASE_URL": address,
    }
    command = [ROOT / "deploy" / "backup" / f"{script}.sh", folder / "file"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", ["backup", "restore"])
@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (
            f"postgresql://who:{PASSWORD}@db.example/maramoja",
            "postgresql://who@db.example/maramoja",
        ),
        (
            f"postgresql://who:{PASSWORD}@db.example:5432/m?a=b:c@d",
            "//who@db.example:5432/m?a=b:c@d",
        ),
        ("postgresql://who@db.example:5432/maramoja", "postgresql://who@db.example:5432/maramoja"),
        ("postgresql:///maramoja?host=/run/pg:1@2", "postgresql:///maramoja?host=/run/pg:1@2"),
    ],
)
def test_no_call_names_the_password(tmp_path: Path, script: str, address: str, shown: str) -> None:
    done = run(tmp_path, script, address)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    arguments, passwords = zip(*(call.rsplit(" | ", 1) for call in calls), strict=True)
    assert PASSWORD not in "".join(arguments)
    assert any(shown in one for one in arguments), arguments
    assert set(passwords) == ({PASSWORD} if PASSWORD in address else {""})


@pytest.mark.parametrize("script", ["backup", "restore"])
def test_a_password_that_would_have_to_be_decoded_is_refused(tmp_path: Path, script: str) -> None:
    done = run(tmp_path, script, "postgresql://who:p%40ss@db.example/maramoja")
    assert done.returncode == 2
    assert "PGPASSFILE" in done.stderr
    assert not (tmp_path / "calls").exists()
