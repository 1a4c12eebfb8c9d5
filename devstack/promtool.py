"""Prometheus' promtool: from the PATH, or from Debian's package.

It needs no root: apt-get downloads and verifies the package with its own package lists, because the
machine's may be empty or old. dpkg unpacks it among our other data, and nothing is installed.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from devstack.errors import StackError
from devstack.places import remove
from devstack.programs import ROOT

# 9 MB of lists, then 19 MB. A mirror that doesn't answer must not block a test run.
ANSWER_MAX_S: Final = 15
DOWNLOAD_MAX_S: Final = 90.0
UNPACK_MAX_S: Final = 30.0
_PACKAGE: Final = "prometheus"
_IN_PACKAGE: Final = Path("usr/bin/promtool")
_KEPT: Final = ROOT / "var" / "tools" / "promtool"


def promtool() -> Path:
    """The program; the first call downloads it if it is missing.

    Raises StackError if it is not available.
    """
    if (on_path := shutil.which("promtool")) is not None:
        return Path(on_path)
    if not _KEPT.exists():
        _fetch(_KEPT)
    return _KEPT


def _fetch(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix="promtool-", dir=target.parent))
    try:
        apt_get = ["apt-get", *_options(draft)]
        _run([*apt_get, "update"], draft, limit_s=DOWNLOAD_MAX_S)
        _run([*apt_get, "download", _PACKAGE], draft, limit_s=DOWNLOAD_MAX_S)
        package = next(draft.glob("*.deb"))
        _run(["dpkg", "-x", package.name, "unpacked"], draft, limit_s=UNPACK_MAX_S)
        # Atomic, because another test process may download it at the same time; both files are equal.
        (draft / "unpacked" / _IN_PACKAGE).replace(target)
    finally:
        remove(draft)


def _options(draft: Path) -> list[str]:
    """Options of apt-get: where it stores its lists, and how long it waits for a mirror."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (draft / folder).mkdir(parents=True)
    chosen = (
        f"Dir::State::lists={draft / 'lists'}",
        f"Dir::Cache={draft / 'cache'}",
        # As root, apt-get would download as the account _apt, which cannot write there.
        "APT::Sandbox::User=root",
        f"Acquire::http::Timeout={ANSWER_MAX_S}",
        "Acquire::Retries=0",
    )
    return [part for option in chosen for part in ("-o", option)]


def _run(command: list[str], folder: Path, *, limit_s: float) -> None:
    try:
        subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=limit_s, check=True
        )
    except FileNotFoundError:
        raise _not_had(f"{command[0]} isn't here: this is no Debian") from None
    except subprocess.TimeoutExpired:
        raise _not_had(f"{command[0]} took more than {limit_s:.0f} s") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        raise _not_had(f"{command[0]}: {said[-1]}") from None


def _not_had(why: str) -> StackError:
    return StackError(
        f"promtool can't be had ({why})",
        remedy="put the promtool of any Prometheus from 2.42 on on the PATH",
    )
