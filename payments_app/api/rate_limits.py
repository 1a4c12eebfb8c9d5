"""Rate limits by key and tenant: in Redis for all hosts; by process while Redis is down.

One round trip counts all windows of a request, returns when they end, and, if no window is full,
takes the lock of the request's idempotency key.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import structlog
from flask import Flask, Response, g
from limits import parse_many
from limits.storage import MemoryStorage
from redis import Redis, RedisError
from werkzeug.exceptions import TooManyRequests

from payments_app.api.idempotent import LOCK_MS, Lock, wanted_lock
from payments_app.kernel.clock import utc_now
from payments_app.kernel.redis_script import Script
from payments_app.settings import Settings
from payments_app.tenants.caller import Caller

log = structlog.get_logger(__name__)

_STRANGERS: Final = "maramoja_strangers"
_CALLBACKS: Final = "maramoja_callbacks"
# What each limit counts, as the RateLimit headers name it.
KEY: Final = "key"
TENANT: Final = "tenant"
STRANGER: Final = "stranger"
CALLBACK: Final = "callback"
# A tenant without a limit of its own gets the limits of so many busy keys.
KEYS_AT_ONCE: Final = 10
# For each window: INCR and the time left, until one is full; its count is the last one returned. A
# key without a TTL gets one, and a value that isn't an integer restarts at 1: both would otherwise
# disable the limit. Then the lock, if one is wanted: returns the token in it.
_LOOK: Final = """
local told, windows = {}, tonumber(ARGV[1])
for number = 1, windows do
    local key, seconds, most = KEYS[number], ARGV[2 * number], tonumber(ARGV[2 * number + 1])
    local count = redis.pcall('incr', key)
    if type(count) == 'table' then
        redis.call('set', key, 1)
        count = 1
    end
    local left_ms = redis.call('pttl', key)
    if left_ms < 0 then
        left_ms = seconds * 1000
        redis.call('pexpire', key, left_ms)
    end
    told[2 * number - 1], told[2 * number] = count, left_ms
    if count > most then return told end
end
local lock = KEYS[windows + 1]
if lock then
    local token, ms = ARGV[2 * windows + 2], ARGV[2 * windows + 3]
    local holder = redis.pcall('get', lock)
    if not holder then
        redis.call('set', lock, token, 'PX', ms)
        holder = token
    elseif type(holder) == 'table' then
        holder = ''
    end
    told[2 * windows + 1] = holder
end
return told
"""
# Blocked addresses that a process remembers; beyond that it forgets all, and Redis counts again.
ADDRESSES_MAX: Final = 10_000
# For all blocked addresses together.
LET_THROUGH_EVERY_S: Final = 1.0
# While Redis is down each process counts by itself, and retries Redis this often.
AVOID_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` requests in `seconds`. `name`: what it counts, as in the headers."""

    name: str
    most: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Window:
    """The state of a limit, this request included. `reset_s`: seconds until the window restarts."""

    limit: Limit
    count: int
    reset_s: int

    @property
    def remaining(self) -> int:
        """How many more requests are allowed."""
        return max(0, self.limit.most - self.count)

    @property
    def is_breached(self) -> bool:
        """Whether this request exceeds the limit."""
        return self.count > self.limit.most


@dataclass(frozen=True, slots=True)
class LimitCheck:
    """The result of one round trip.

    `holder`: the token in the lock, this request's own if it got it; None if unknown.
    """

    windows: list[Window]
    holder: str | None = None


class LimitCounters:
    """Fixed windows in Redis, several of them counted in one round trip.

    They are Flask-Limiter's, in its notation; that library makes one round trip for each window.
    """

    def __init__(self, redis: Redis) -> None:
        """`redis`: shared by all hosts."""
        self._look = Script(redis, _LOOK)
        self._here = MemoryStorage()
        self._avoid_until = 0.0

    def count(self, limits: Sequence[tuple[Limit, str]], lock: Lock | None = None) -> LimitCheck:
        """Count one for each (limit, whose), up to a full one; if none is full, take the lock."""
        if time.monotonic() >= self._avoid_until:
            try:
                return self._count_in_redis(limits, lock)
            except RedisError as error:
                self._avoid_until = time.monotonic() + AVOID_S
                log.warning("limits.redis_unavailable", error=type(error).__name__)
        return LimitCheck(self._count_here(limits))

    def _count_in_redis(self, limits: Sequence[tuple[Limit, str]], lock: Lock | None) -> LimitCheck:
        keys = [_key(limit, whose) for limit, whose in limits]
        arguments: list[int | str] = [len(limits)]
        for limit, _ in limits:
            arguments += limit.seconds, limit.most
        if lock is not None:
            keys.append(lock.name)
            arguments += lock.token, LOCK_MS
        told = self._look(keys, arguments)
        numbers = iter(told[: 2 * len(limits)])
        # As many pairs as there are limits, or fewer.
        pairs = zip(limits, zip(numbers, numbers, strict=True), strict=False)
        windows = [
            Window(limit, int(count), max(1, round(int(left_ms) / 1000)))
            for (limit, _), (count, left_ms) in pairs
        ]
        holders = told[2 * len(limits) :]
        return LimitCheck(windows, holders[0].decode(errors="replace") if holders else None)

    def _count_here(self, limits: Sequence[tuple[Limit, str]]) -> list[Window]:
        windows: list[Window] = []
        now = utc_now().timestamp()
        for limit, whose in limits:
            key = _key(limit, whose)
            count = self._here.incr(key, limit.seconds)
            ends_in_s = self._here.get_expiry(key) - now
            windows.append(Window(limit, count, max(1, round(ends_in_s))))
            if windows[-1].is_breached:
                break
        return windows


def register_limits(app: Flask, settings: Settings, *, redis: Redis) -> None:
    """Count by key and tenant over all routes, and by address what has no valid key."""
    windows = LimitCounters(redis)
    app.extensions[_STRANGERS] = ByAddress(
        windows, settings.rate_limit_unauthenticated, what=STRANGER
    )
    app.extensions[_CALLBACKS] = ByAddress(windows, settings.rate_limit_callbacks, what=CALLBACK)

    @app.before_request
    def count_caller() -> None:
        caller: Caller | None = g.get("caller")
        if caller is None:
            return
        own = caller.rate_limit, caller.tenant_rate_limit
        of_key, of_tenant = _limits_of(*own, settings.rate_limit_default)
        lock = wanted_lock(caller)
        look = windows.count(
            [(limit, str(caller.key_id)) for limit in of_key]
            + [(limit, str(caller.tenant_id)) for limit in of_tenant],
            lock,
        )
        g.windows, g.lock, g.lock_holder = look.windows, lock, look.holder
        if g.windows[-1].is_breached:
            raise TooManyRequests(retry_after=g.windows[-1].reset_s)

    @app.after_request
    def tell_limit(response: Response) -> Response:
        if told := g.get("windows"):
            _set_ratelimit_headers(told, response)
        return response


class ByAddress:
    """Counts one kind of request by source address.

    Only this kind is counted and refused: the same address may have other clients with valid keys.
    """

    def __init__(self, windows: LimitCounters, limit: str, *, what: str) -> None:
        """`limit` in Flask-Limiter's notation."""
        self._windows = windows
        self._limits = parsed(limit, what)
        # Blocked addresses, and until when (seconds of time.monotonic).
        self._full_until: dict[str, float] = {}
        self._let_through_at = 0.0

    def count(self, address: str) -> None:
        """Count one more. Raises TooManyRequests when there are too many."""
        windows = self._windows.count([(limit, address) for limit in self._limits]).windows
        if windows[-1].is_breached:
            if len(self._full_until) >= ADDRESSES_MAX:
                self._full_until.clear()
            self._full_until[address] = time.monotonic() + windows[-1].reset_s
            raise TooManyRequests(retry_after=windows[-1].reset_s)

    def refuse_if_full(self, address: str) -> None:
        """Count nothing. Raises TooManyRequests while this process has the address as blocked.

        One request a second is let through all the same: one address may have several clients.
        """
        now = time.monotonic()
        left_s = self._full_until.get(address, now) - now
        if left_s <= 0:
            self._full_until.pop(address, None)
        elif now - self._let_through_at < LET_THROUGH_EVERY_S:
            raise TooManyRequests(retry_after=math.ceil(left_s))
        else:
            self._let_through_at = now


def count_stranger(app: Flask, address: str | None) -> None:
    """Count an attempt without a valid key. Raises TooManyRequests."""
    strangers: ByAddress = app.extensions[_STRANGERS]
    strangers.count(address or "unknown")


def refuse_stranger(app: Flask, address: str | None) -> None:
    """Refuse a key lookup for an address with too many attempts. Raises TooManyRequests."""
    strangers: ByAddress = app.extensions[_STRANGERS]
    strangers.refuse_if_full(address or "unknown")


def count_callback(app: Flask, address: str | None) -> None:
    """Count a callback, whatever it is about. Raises TooManyRequests."""
    callbacks: ByAddress = app.extensions[_CALLBACKS]
    callbacks.count(address or "unknown")


def parsed(notation: str, name: str) -> tuple[Limit, ...]:
    """Limits in Flask-Limiter's notation, the shortest window first. Raises ValueError."""
    limits = (Limit(name, item.amount, item.get_expiry()) for item in parse_many(notation))
    return tuple(sorted(limits, key=lambda limit: limit.seconds))


def _set_ratelimit_headers(windows: Sequence[Window], response: Response) -> None:
    """Put the tightest window in the old headers, and all windows in those of the IETF's draft."""
    tightest = min(windows, key=lambda window: window.remaining)
    policy = [f'"{w.limit.name}";q={w.limit.most};w={w.limit.seconds}' for w in windows]
    state = [f'"{w.limit.name}";r={w.remaining};t={w.reset_s}' for w in windows]
    response.headers.extend(
        (
            ("RateLimit-Limit", str(tightest.limit.most)),
            ("RateLimit-Remaining", str(tightest.remaining)),
            ("RateLimit-Reset", str(tightest.reset_s)),
            ("RateLimit-Policy", ", ".join(policy)),
            ("RateLimit", ", ".join(state)),
        )
    )


def _key(limit: Limit, whose: str) -> str:
    return f"limit:{limit.name}:{whose}:{limit.most}/{limit.seconds}"


@lru_cache(maxsize=1024)
def _limits_of(
    own: str | None, of_tenant: str | None, default: str
) -> tuple[tuple[Limit, ...], tuple[Limit, ...]]:
    """A key's limits, and those of its tenant's keys together: KEYS_AT_ONCE times one key's."""
    of_key = _readable(own, KEY) or parsed(default, KEY)
    together = tuple(
        replace(limit, name=TENANT, most=limit.most * KEYS_AT_ONCE) for limit in of_key
    )
    return of_key, _readable(of_tenant, TENANT) or together


def _readable(notation: str | None, name: str) -> tuple[Limit, ...]:
    """An unreadable limit is ignored, so that it doesn't stop the counting of all others."""
    try:
        return parsed(notation, name) if notation else ()
    except ValueError:
        # The log line's tenant_id says whose limit it is.
        log.error("limit.unreadable")
        return ()
