"""Names to addresses, within a time. One owner's slow names take no lookup from another owner."""

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
from payments_app.kernel.public_address import Address

# Called as socket.getaddrinfo is.
Resolve = Callable[..., Sequence[Sequence[Any]]]
Addresses = tuple[Address, ...]
# getaddrinfo can't be ended: a lookup that hangs keeps its thread until the system gives up. No
# more than these run at once, for all owners and for one.
LOOKUPS_MAX: Final = 128
LOOKUPS_PER_OWNER: Final = 4
# A name is looked up again after this, so that a change of it is followed.
NAME_KEPT_S: Final = 30.0
NAMES_KEPT_MAX: Final = 4096


class LookupLate(TimeoutError):
    """The name's addresses weren't found in time."""


class LookupRefused(Exception):
    """The owner, or all owners together, have too many lookups under way. None was begun."""


@dataclass(frozen=True, slots=True)
class Name:
    """What is looked up. `owner` is whoever gave us the name: its lookups are counted."""

    owner: Hashable
    host: str
    port: int


class Lookups:
    """Looks names up, each in a thread of its own. Any thread may ask."""

    def __init__(
        self,
        *,
        at_once: int = LOOKUPS_MAX,
        per_owner: int = LOOKUPS_PER_OWNER,
        kept_s: float = NAME_KEPT_S,
    ) -> None:
        """`kept_s`: how long an answer is used again, in seconds."""
        self._at_once = at_once
        self._per_owner = per_owner
        self._kept_s = kept_s
        # Guards what follows.
        self._lock = threading.Lock()
        self._under_way: dict[Name, Future[Addresses]] = {}
        self._of_owner: Counter[Hashable] = Counter()
        self._kept: dict[Name, tuple[float, Addresses]] = {}

    def addresses(
        self, resolve: Resolve, name: Name, timeout_s: float, *, join: bool = True
    ) -> Addresses:
        """All addresses of the name, at least one.

        Whoever asks for a name that is being looked up waits for that lookup; with `join` false it
        is refused. Raises LookupLate, LookupRefused, or OSError for an unknown name.
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
        # A daemon: a lookup that hangs doesn't keep the process from ending.
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
            # Counter keeps what is nought.
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
    # Each once, in the order that the system prefers.
    each = dict.fromkeys(ip_address(entry[4][0]) for entry in entries)
    if not each:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return tuple(each)
