"""The account that the servers run as: PostgreSQL refuses to run as root."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypedDict

from devstack.errors import StackError

# Accounts that exist on most machines: a stack must not create one.
_CANDIDATES = ("nobody", "postgres", "daemon")


class PopenOptions(TypedDict):
    """The part of subprocess.Popen's arguments that changes the user."""

    user: int | None
    group: int | None
    extra_groups: list[int] | None
    umask: int


@dataclass(frozen=True)
class ServerUser:
    """An account without rights, for servers that root starts."""

    name: str
    uid: int
    gid: int


def popen_options(user: ServerUser | None) -> PopenOptions:
    """Run as this account only, without root's other groups; None changes nothing."""
    if user is None:
        return {"user": None, "group": None, "extra_groups": None, "umask": -1}
    return {"user": user.uid, "group": user.gid, "extra_groups": [], "umask": 0o077}


@cache
def server_user() -> ServerUser | None:
    """The account for servers; None means that we are not root, and they run as our own user."""
    if os.geteuid() != 0:
        return None
    for name in _CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        user = ServerUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
        if _passes("-d", Path("/"), user):
            return user
    raise StackError(
        f"PostgreSQL does not run as root, and none of {', '.join(_CANDIDATES)} can be used",
        remedy="run as an ordinary user, or point DATABASE_URL to a server",
    )


def can_enter(path: Path, user: ServerUser | None) -> bool:
    """Whether the account can enter this directory and all those above it."""
    return os.access(path, os.X_OK) if user is None else _passes("-x", path, user)


def _passes(condition: str, path: Path, user: ServerUser) -> bool:
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", 'test "$1" "$2"', "test", condition, str(path)],
            cwd="/",
            check=False,
            **popen_options(user),
        )
    except (PermissionError, OSError):
        return False
    return done.returncode == 0
