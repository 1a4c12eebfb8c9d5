"""The Idempotency-Key header and the Redis lock before it. Postgres decides; see acceptance, once.

The lock only spares a second request the wait inside the database, and a late one the work of
the first. Redis may be empty, away or lying: then the answer takes longer, and is the same.
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
# Longer than any request runs (gunicorn's timeout), so that it covers the first one whole; and
# clients that repeat a request mostly do so within it.
LOCK_MS: Final = 60_000
# How long a second request waits for the first before it tries by itself.
COALESCE_S: Final = 2.0
POLL_FIRST_S: Final = 0.01
POLL_MAX_S: Final = 0.1
# After Redis failed once, don't wait for it again in every request.
AVOID_S: Final = 5.0
_FAILED: Final = 400
# The nil and the max UUID (RFC 9562, 5.9 and 5.10): of two orders with one of them, the second
# would get the first one's answer.
UNSET: Final = frozenset((UUID(int=0), UUID(int=2**128 - 1)))
_LOCKS: Final = "maramoja_locks"
_COMPARE_AND_DELETE: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""


@dataclass(frozen=True, slots=True)
class Lock:
    """A key's lock as one request asks for it. `token`: what stands in it if it is taken."""

    key: UUID
    name: str
    token: str


def idempotent(view: View) -> View:
    """Declare that the view honours Idempotency-Key; each that changes something has to.

    Redis is asked for the lock of the key before the view is called.
    """
    view.__dict__["idempotent"] = True
    return view


def wanted_lock(caller: Caller) -> Lock | None:
    """The lock that this request is to take; None for a route or a request without a key."""
    view = current_app.view_functions[request.endpoint or ""]
    # Flask answers OPTIONS by itself, and well: nobody would give the lock back.
    if request.method == "OPTIONS" or not getattr(view, "idempotent", False):
        return None
    try:
        key = _read_key()
    except KeyInvalid:
        # The view says so, when it is its turn.
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
    # UUID() also reads braces, urn: and missing hyphens; one spelling is enough.
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
    """Give the lock back when the request came to nothing.

    Else it stays for LOCK_MS: who repeats the request in that time asks PostgreSQL for the first
    answer at once, instead of trying to be the first.
    """
    locks = Locks(redis)
    app.extensions[_LOCKS] = locks

    @app.after_request
    def give_back(response: Response) -> Response:
        lock: Lock | None = g.get("lock")
        if lock is not None and g.lock_holder == lock.token and response.status_code >= _FAILED:
            locks.give_back(lock)
        return response


def await_first(find: Callable[[], T | None]) -> T | None:
    """What `find` finds, if another request has this one's key; None if nobody has."""
    lock: Lock | None = g.get("lock")
    if lock is None:
        return None
    # "": there is something that can't be read, and so nobody's.
    if g.lock_holder in (None, "", lock.token):
        metrics.key_lock_wait_seconds.observe(0)
        return None
    locks: Locks = current_app.extensions[_LOCKS]
    return locks.await_first(lock.name, g.lock_holder, find)


class Locks:
    """What is asked of a lock once it is known whose it is. Never an error: at worst no lock."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._release = Script(redis, _COMPARE_AND_DELETE)
        self._avoid_until = 0.0

    def give_back(self, lock: Lock) -> None:
        """Let the next one be the first."""
        self._call(lambda: self._release([lock.name], [lock.token]))

    def await_first(self, name: str, holder: str, find: Callable[[], T | None]) -> T | None:
        """What `find` finds, asked again while the holder is at it, COALESCE_S at most."""
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
                # It has failed, or nobody can say.
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
