"""Where a server's files go: short paths for sockets, and paths that its account can reach."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from random import SystemRandom

from devstack.errors import StackError
from devstack.users import ServerUser, can_enter

# A socket's whole path has to fit into 104 bytes on macOS (108 on Linux).
SOCKET_PATH_MAX = 100

# Below the range from which Linux and macOS give clients their ports, so that no outgoing
# connection takes a free port before its server listens.
PORTS = range(20_000, 32_000)

# Names of ports that this process was given: see free_port.
_reserved: list[socket.socket] = []


def identity(home: Path) -> str:
    """A name for this home, unique on this machine: two checkouts, or a copy of one, differ."""
    token_path = home / "identity"
    if not token_path.exists():
        token_path.write_text(secrets.token_hex(8), encoding="ascii")
    seed = f"{home.resolve()}|{token_path.read_text(encoding='ascii')}"
    return hashlib.sha256(seed.encode()).hexdigest()[:12]


def temporary_home(user: ServerUser | None) -> Path:
    """A new directory for temporary servers, which the account can enter."""
    for base in _temporary_bases():
        if can_enter(base, user):
            home = Path(tempfile.mkdtemp(prefix="maramoja-", dir=base))
            home.chmod(0o755)
            return home
    raise _no_temporary_directory()


def socket_directory(home: Path, user: ServerUser | None) -> Path:
    """A private directory for a Unix socket, made if it is missing; only the account can enter."""
    name = f"maramoja-{identity(home)}"
    for base in _temporary_bases():
        path = base / name
        if len(str(path)) < SOCKET_PATH_MAX - len("/.s.PGSQL.5432") and can_enter(base, user):
            return private_directory(path, user)
    raise _no_temporary_directory()


def data_directory(home: Path, user: ServerUser | None) -> Path:
    """Where the data is stored: in `home`, or outside if the account cannot enter `home`.

    No other account can enter a clone in root's home directory, and changing that would be wrong.
    All accounts can enter /var/tmp, and it survives a restart of the machine.
    """
    if can_enter(home, user):
        return home / "data"
    outside = private_directory(Path("/var/tmp") / f"maramoja-{identity(home)}", user)  # noqa: S108
    return outside / "data"


def private_directory(path: Path, user: ServerUser | None) -> Path:
    """Make or check a directory that only the account may enter; refuse another account's."""
    owner = os.geteuid() if user is None else user.uid
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if path.is_symlink() or path.lstat().st_uid != owner:
            raise StackError(
                f"{path} belongs to another account", remedy="remove it, then start again"
            ) from None
        return path
    if user is not None:
        os.chown(path, user.uid, user.gid)
    return path


def remove(path: Path) -> None:
    """Remove a directory and its content, if it exists."""
    shutil.rmtree(path, ignore_errors=True)


def free_port() -> int:
    """A free port on the loopback address, which no other process of ours is given meanwhile.

    The server listens later, so the port is reserved for as long as this process lives: by a name
    among Linux's abstract Unix sockets, which ends with the process.
    """
    for port in SystemRandom().sample(PORTS, k=200):
        if port_is_free(port) and _reserve(port):
            return port
    raise StackError("200 ports were tried and all are taken", remedy="close some programs")


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _reserve(port: int) -> bool:
    if sys.platform != "linux":
        return True
    name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        name.bind(f"\0maramoja-port-{port}")
    except OSError:
        name.close()
        return False
    _reserved.append(name)
    return True


def _temporary_bases() -> tuple[Path, ...]:
    return (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))  # noqa: S108


def _no_temporary_directory() -> StackError:
    return StackError(
        "no directory for temporary files can be used for PostgreSQL",
        remedy="set TMPDIR to a short path that every account can enter, such as /tmp",
    )
