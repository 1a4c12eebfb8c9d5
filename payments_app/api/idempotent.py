"""The Idempotency-Key header and the Redis lock before it. Postgres decides; see acceptance.

The lock only spares a second request the wait inside the database, and a late one the work of
the first. Redis may be empty, away or lying: then the answer takes longer, and is the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar
from uuid import UUID

import structlog
from flask import request
from redis import Redis, RedisError

from payments_app.kernel import metrics
from payments_app.kernel.idempotency import KeyInvalid, KeyMissing

T = TypeVar("T")
log = structlog.get_logger(__name__)

HEADER: Final = "Idempotency-Key"
# Longer than any request runs (gunicorn's timeout), so that it covers the first one whole; and
# clients that repeat a request mostly do so within it.
LOCK_MS: Final = 60_000
# How long a second request waits for the first before it tries by itself.
COALESCE_S: Final = 2.0
POLL_FIRST_S: Final = 0.01
POLL_MAX_S: Final = 0.1
# After Redis failed once, don't wait for it again in every request.
AVOID_S: Final = 5.0
_COMPARE_AND_DELETE: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


def key_of_request(*, required: bool) -> UUID | None:
    """The request's Idempotency-Key. Raises KeyMissing, KeyInvalid.

    A UUID, bare or as a Structured Field string in double quotes (RFC 9651, and the draft).
    """
    values = request.headers.getlist(HEADER)
    if not values:
        if required:
            raise KeyMissing("This tenant requires an Idempotency-Key header.")
        return None
    text = values[0].strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    try:
        key = UUID(text)
    except ValueError:
        key = None
    # UUID() also reads braces, urn: and missing hyphens; one spelling is enough.
    if len(values) != 1 or key is None or str(key) != text.lower():
        raise KeyInvalid("The Idempotency-Key must be one UUID, such as uuidgen prints.")
    return key


class RequestLock:
    """SET NX PX with a token, and compare-and-delete. Never an error: at worst no lock."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._release = redis.register_script(_COMPARE_AND_DELETE)
        self._avoid_until = 0.0

    @contextmanager
    def hold(self, name: str, *, about: str) -> Iterator[str | None]:
        """Take the lock. Yields None, or the token of whoever asked the same before us.

        `about` is a digest of the request: one who asks something else under the same key is
        nobody to wait for, because its answer doesn't depend on the first one's end. It is given
        back when the block fails. Else it stays for LOCK_MS, and who repeats the request in that
        time asks PostgreSQL for the first answer at once, instead of trying to be the first.
        """
        asked_at = time.monotonic()
        token = f"{secrets.token_hex(8)}:{about}"
        held = self._call(lambda: self._take(name, token))
        holder = held if isinstance(held, str) and held.rpartition(":")[2] == about else None
        if holder is None:
            metrics.key_lock_wait_seconds.observe(time.monotonic() - asked_at)
        try:
            yield holder
        except BaseException:
            if held is True:
                self._call(lambda: self._release(keys=[name], args=[token]))
            raise

    def await_first(self, name: str, holder: str, find: Callable[[], T | None]) -> T | None:
        """What `find` finds, asked again while the holder is at it, COALESCE_S at most."""
        asked_at = time.monotonic()
        pause = POLL_FIRST_S
        while (found := find()) is None and time.monotonic() - asked_at < COALESCE_S:
            time.sleep(pause)
            pause = min(pause * 2, POLL_MAX_S)
            now_held = self._call(lambda: self._redis.get(name))
            if not isinstance(now_held, bytes) or now_held.decode(errors="replace") != holder:
                # It has failed, or nobody can say.
                break
        metrics.key_lock_wait_seconds.observe(time.monotonic() - asked_at)
        return found

    def _take(self, name: str, token: str) -> bool | str:
        """True when the lock is ours, else the holder's token."""
        taken = self._redis.execute_command("SET", name, token, "NX", "PX", LOCK_MS)  # type: ignore[no-untyped-call]
        if taken:
            return True
        holder = self._redis.get(name)
        return holder.decode(errors="replace") if isinstance(holder, bytes) else ""

    def _call(self, command: Callable[[], T]) -> T | None:
        if time.monotonic() < self._avoid_until:
            return None
        try:
            return command()
        except RedisError as error:
            self._avoid_until = time.monotonic() + AVOID_S
            log.warning("lock.unavailable", error=type(error).__name__)
            return None
