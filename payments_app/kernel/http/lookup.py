"""DNS lookups with a timeout. One owner's slow names take no lookup slot from another owner."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from payments_app.kernel.clock import boot_seconds
from payments_app.kernel.http.public_address import Address

# Has the signature of socket.getaddrinfo.
Resolve = Callable[..., Sequence[Sequence[Any]]]
Addresses = tuple[Address, ...]
# getaddrinfo can't be cancelled: a lookup that hangs keeps its thread until the system gives up.
# These are the most lookups at once, for all owners and for one owner.
LOOKUPS_MAX: Final = 128
LOOKUPS_PER_OWNER: Final = 4
# A name is looked up again after this, so that a DNS change takes effect.
NAME_KEPT_S: Final = 30.0
NAMES_KEPT_MAX: Final = 4096


class LookupLate(TimeoutError):
    """The name's addresses were not found in time."""


class LookupRefused(Exception):
    """The owner, or all owners together, have too many lookups under way. No lookup was begun."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name to look up. `owner` is the tenant that gave the name: its lookups are counted."""

    owner: Hashable
    host: str
    port: int


class Lookups:
    """Looks names up, each in a separate thread. Any thread may call it."""

    def __init__(
        self,
        *,
        at_once: int = LOOKUPS_MAX,
        per_owner: int = LOOKUPS_PER_OWNER,
        kept_s: float = NAME_KEPT_S,
    ) -> None:
        """`kept_s`: how long a result is cached, in seconds."""
        self._at_once = at_once
        self._per_owner = per_owner
        self._kept_s = kept_s
        # Guards the fields below.
        self._lock = threading.Lock()
        self._under_way: dict[Name, Future[Addresses]] = {}
        self._of_owner: Counter[Hashable] = Counter()
        self._kept: dict[Name, tuple[float, Addresses]] = {}

    def addresses(
        self, resolve: Resolve, name: Name, timeout_s: float, *, join: bool = True
    ) -> Addresses:
        """All addresses of the name, at least one.

        If the name is being looked up already, the call waits for that lookup; with `join` false
        it is refused. Raises LookupLate, LookupRefused, or OSError for an unknown name.
        """
        with self._lock:
            until, kept = self._kept.get(name, (0.0, ()))
            if until > boot_seconds():
                return kept
            found = self._under_way.get(name)
            if found is None:
                found = self._begin(resolve, name)
            elif not join:
                raise LookupRefused("this name is being looked up")
        try:
            return found.result(max(0.0, timeout_s))
        except TimeoutError as error:
            raise LookupLate("the name was not found in time") from error

    def _begin(self, resolve: Resolve, name: Name) -> Future[Addresses]:
        if len(self._under_way) >= self._at_once or self._of_owner[name.owner] >= self._per_owner:
            raise LookupRefused("too many lookups are under way")
        found: Future[Addresses] = Future()
        # A daemon thread: a lookup that hangs does not keep the process alive.
        thread = threading.Thread(
            target=self._look_up, args=(resolve, name, found), name="lookup", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            raise LookupRefused("the system has no thread left") from error
        self._under_way[name] = found
        self._of_owner[name.owner] += 1
        return found

    def _look_up(self, resolve: Resolve, name: Name, found: Future[Addresses]) -> None:
        answer: Addresses | Exception
        try:
            answer = _resolved(resolve, name)
        except Exception as error:  # noqa: BLE001 - raised again by result(), in the caller's thread
            answer = error
        with self._lock:
            self._under_way.pop(name)
            self._of_owner[name.owner] -= 1
            # A Counter keeps zero counts; this addition removes them.
            self._of_owner += Counter()
            if isinstance(answer, tuple):
                self._keep(name, answer)
        if isinstance(answer, tuple):
            found.set_result(answer)
        else:
            found.set_exception(answer)

    def _keep(self, name: Name, answer: Addresses) -> None:
        if not self._kept_s:
            return
        if len(self._kept) >= NAMES_KEPT_MAX:
            self._kept.clear()
        self._kept[name] = (boot_seconds() + self._kept_s, answer)


def _resolved(resolve: Resolve, name: Name) -> Addresses:
    entries = resolve(name.host, name.port, type=socket.SOCK_STREAM)
    # Each address once, in the system's order of preference.
    each = dict.fromkeys(ip_address(entry[4][0]) for entry in entries)
    if not each:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return tuple(each)
