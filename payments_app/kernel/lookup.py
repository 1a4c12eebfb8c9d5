"""Names to addresses, within a time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from ipaddress import ip_address
from typing import Any, Final

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.public_address import Address

# Called as socket.getaddrinfo is.
Resolve = Callable[..., Sequence[Sequence[Any]]]
# getaddrinfo can't be ended: a lookup that hangs keeps its thread until the system gives up. No
# more than these run in a process at once, whoever's names they are.
LOOKUPS_MAX: Final = 64
_lookups: Final = threading.BoundedSemaphore(LOOKUPS_MAX)


class LookupLate(TimeoutError):
    """The name's addresses weren't found in time."""


def addresses(resolve: Resolve, host: str, port: int, timeout_s: float) -> tuple[Address, ...]:
    """All addresses of the name, at least one. Raises LookupLate, or OSError for an unknown name."""
    until = boot_seconds() + timeout_s
    if not _lookups.acquire(timeout=timeout_s):
        raise LookupLate("too many lookups are under way")
    found: Future[Sequence[Sequence[Any]]] = Future()

    def look() -> None:
        try:
            found.set_result(resolve(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # noqa: BLE001 - raised again by result(), in the caller's thread
            found.set_exception(error)
        finally:
            _lookups.release()

    # A daemon: a lookup that hangs doesn't keep the process from ending.
    threading.Thread(target=look, name="lookup", daemon=True).start()
    try:
        entries = found.result(max(0.0, until - boot_seconds()))
    except TimeoutError as error:
        raise LookupLate("the name was not found in time") from error
    # Each once, in the order that the system prefers.
    each = dict.fromkeys(ip_address(entry[4][0]) for entry in entries)
    if not each:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return tuple(each)
