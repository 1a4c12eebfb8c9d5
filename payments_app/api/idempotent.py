"""The Idempotency-Key header, and its Redis lock. PostgreSQL decides: see payments/accept.py and once.py.

The lock only saves a concurrent request the wait in the database, and a later one the work of the
first. Redis may be empty, down or wrong: the answer then takes longer, and is the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog
from flask import Flask, Response, current_app, g, request
from redis import Redis, RedisError

from payments_app.kernel import metrics
from payments_app.kernel.idempotency import KeyInvalid, KeyMissing
from payments_app.kernel.redis_script import Script
from payments_app.tenants.caller import Caller

T = TypeVar("T")
View = TypeVar("View", bound=Callable[..., Any])
log = structlog.get_logger(__name__)

HEADER: Final = "Idempotency-Key"
# Longer than any request runs (gunicorn's timeout), so that it covers the whole first request. Most
# client retries come within it.
LOCK_MS: Final = 60_000
# How long a second request waits for the first before it continues on its own.
COALESCE_S: Final = 2.0
POLL_FIRST_S: Final = 0.01
POLL_MAX_S: Final = 0.1
# After an error, Redis is not tried again for this long, so that requests don't wait for it.
AVOID_S: Final = 5.0
_FAILED: Final = 400
# The nil and the max UUID (RFC 9562, 5.9 and 5.10). If two orders used one of them, the second
# would get the first one's answer.
UNSET: Final = frozenset((UUID(int=0), UUID(int=2**128 - 1)))
_LOCKS: Final = "maramoja_locks"
_COMPARE_AND_DELETE: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


@dataclass(frozen=True, slots=True)
class Lock:
    """The lock of an idempotency key. `token`: the value that this request stores if it gets it."""

    key: UUID
    name: str
    token: str


def idempotent(view: View) -> View:
    """Declare that the view honours Idempotency-Key; each view that changes something must.

    The lock of the key is requested from Redis before the view is called.
    """
    view.__dict__["idempotent"] = True
    return view


def wanted_lock(caller: Caller) -> Lock | None:
    """The lock that this request should take; None for a route or a request without a key."""
    view = current_app.view_functions[request.endpoint or ""]
    # Flask answers OPTIONS itself, with success: nothing would release the lock.
    if request.method == "OPTIONS" or not getattr(view, "idempotent", False):
        return None
    try:
        key = _read_key()
    except KeyInvalid:
        # The view raises it later.
        return None
    if key is None:
        return None
    name = f"idempotency:{caller.tenant_id}:{caller.mode}:{key}"
    return Lock(key, name, secrets.token_hex(8))


def key_of_request(*, required: bool) -> UUID | None:
    """The request's Idempotency-Key. Raises KeyMissing, KeyInvalid."""
    lock: Lock | None = g.get("lock")
    key = _read_key() if lock is None else lock.key
    if key is None and required:
        raise KeyMissing("This tenant requires an Idempotency-Key header.")
    return key


def _read_key() -> UUID | None:
    """A UUID, bare or as a Structured Field string in double quotes (RFC 9651, and the draft)."""
    values = request.headers.getlist(HEADER)
    if not values:
        return None
    text = values[0].strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    try:
        key = UUID(text)
    except ValueError:
        key = None
    # UUID() also reads braces, urn: and missing hyphens; we accept one spelling only.
    if len(values) != 1 or key is None or str(key) != text.lower():
        raise KeyInvalid(
            "The Idempotency-Key must be one UUID, such as 3f0e8a52-6c1d-4b7e-9d0b-0d9a6d1c2f3a."
        )
    if key in UNSET:
        raise KeyInvalid(
            "The Idempotency-Key is the nil or the max UUID, which a variable holds that nobody"
            " has set. Make a new UUID for each request that is to be done once."
        )
    return key


def register_locks(app: Flask, *, redis: Redis) -> None:
    """Release the lock when the request failed.

    Otherwise it stays for LOCK_MS: a retry in that time reads the first answer from PostgreSQL at
    once, instead of trying to be the first.
    """
    locks = Locks(redis)
    app.extensions[_LOCKS] = locks

    @app.after_request
    def release_key(response: Response) -> Response:
        lock: Lock | None = g.get("lock")
        if lock is not None and g.lock_holder == lock.token and response.status_code >= _FAILED:
            locks.release_key(lock)
        return response


def wait_for_original(find: Callable[[], T | None]) -> T | None:
    """The result of `find`, if another request holds this key's lock; None if no request does."""
    lock: Lock | None = g.get("lock")
    if lock is None:
        return None
    # "": the lock's value can't be read, so it is no request's token.
    if g.lock_holder in (None, "", lock.token):
        metrics.key_lock_wait_seconds.observe(0)
        return None
    locks: Locks = current_app.extensions[_LOCKS]
    return locks.wait_for_original(lock.name, g.lock_holder, find)


class Locks:
    """Operations on locks whose holder is known. They never raise; at worst there is no lock."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._release = Script(redis, _COMPARE_AND_DELETE)
        self._avoid_until = 0.0

    def release_key(self, lock: Lock) -> None:
        """Release the lock, so that the next request can take it."""
        self._call(lambda: self._release([lock.name], [lock.token]))

    def wait_for_original(self, name: str, holder: str, find: Callable[[], T | None]) -> T | None:
        """The result of `find`, polled while the holder has the lock, for COALESCE_S at most."""
        asked_at = time.monotonic()
        try:
            return self._found_in_time(name, holder, find)
        finally:
            metrics.key_lock_wait_seconds.observe(time.monotonic() - asked_at)

    def _found_in_time(self, name: str, holder: str, find: Callable[[], T | None]) -> T | None:
        asked_at = time.monotonic()
        pause = POLL_FIRST_S
        while (found := find()) is None and time.monotonic() - asked_at < COALESCE_S:
            time.sleep(pause)
            pause = min(pause * 2, POLL_MAX_S)
            now_held = self._call(lambda: self._redis.get(name))
            if not isinstance(now_held, bytes) or now_held.decode(errors="replace") != holder:
                # The holder has failed, or Redis can't say.
                break
        return found

    def _call(self, command: Callable[[], T]) -> T | None:
        if time.monotonic() < self._avoid_until:
            return None
        try:
            return command()
        except RedisError as error:
            self._avoid_until = time.monotonic() + AVOID_S
            log.warning("lock.unavailable", error=type(error).__name__)
            return None
