"""How often a key and a tenant may ask: in Redis over all hosts, in a process while Redis is away.

Flask-Limiter decides. What it stores in counts and, in the same round trip, learns when the
window ends: the RateLimit headers ask Redis nothing more.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import structlog
from flask import Flask, Response, g
from flask_limiter import ApplicationLimit, Limiter, RequestLimit
from limits import parse_many
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import FixedWindowRateLimiter, RateLimiter
from redis import ConnectionPool, Redis, RedisError
from werkzeug.exceptions import TooManyRequests

from payments_app.kernel.clock import utc_now
from payments_app.settings import Settings

log = structlog.get_logger(__name__)

_SCHEME: Final = "maramoja-window"
_STRANGERS: Final = "maramoja_strangers"
_CALLBACKS: Final = "maramoja_callbacks"
# What each limit counts, as the RateLimit headers name it.
KEY: Final = "key"
TENANT: Final = "tenant"
STRANGER: Final = "stranger"
CALLBACK: Final = "callback"
# Where a tenant has no limit of its own, so many of its keys may be busy at once.
KEYS_AT_ONCE: Final = 10
# INCRBY and the time left, in one round trip. A window without an end, however it came about,
# gets one; what is no count begins anew, or it would let everyone through for good.
_COUNT: Final = """
local count = redis.pcall('incrby', KEYS[1], ARGV[2])
if type(count) == 'table' then
    redis.call('set', KEYS[1], ARGV[2])
    count = ARGV[2]
end
local left_ms = redis.call('pttl', KEYS[1])
if left_ms < 0 then
    left_ms = ARGV[1] * 1000
    redis.call('pexpire', KEYS[1], left_ms)
end
return {count, left_ms}
"""


class WindowStorage(RedisStorage):
    """Fixed windows in Redis that are read while they are counted.

    What `incr` learned is kept for the rest of the request.
    """

    STORAGE_SCHEME: list[str] = [_SCHEME]  # noqa: RUF012  limits has it so

    def __init__(self, uri: str, *, connection_pool: ConnectionPool, **options: Any) -> None:
        """`uri` is only the scheme: the connections are the app's own."""
        super().__init__(uri, connection_pool=connection_pool, **options)
        self._count = self.storage.register_script(_COUNT)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count, and learn when the window ends."""
        count, left_ms = self._count([self.prefixed_key(key)], [expiry, amount])
        _windows()[key] = (int(count), utc_now().timestamp() + int(left_ms) / 1000)
        return int(count)

    def get(self, key: str) -> int:
        """The count. 0 if what stands there is no number: a limit must not fail a request."""
        known = _windows().get(key)
        if known:
            return known[0]
        try:
            return int(super().get(key))
        except ValueError:
            return 0

    def get_expiry(self, key: str) -> float:
        """When the window ends, in seconds since 1970."""
        known = _windows().get(key)
        return known[1] if known else float(super().get_expiry(key))


def register_limits(app: Flask, settings: Settings, *, redis: Redis) -> None:
    """Count by key and by tenant, all routes together; and by address what proves no key."""
    limiter = Limiter(
        _key,
        application_limits=[
            ApplicationLimit(
                lambda: _limit_of(g.caller.rate_limit, settings.rate_limit_default),
                scope=KEY,
            ),
            ApplicationLimit(
                lambda: _tenant_limit_of(
                    g.caller.tenant_rate_limit,
                    _limit_of(g.caller.rate_limit, settings.rate_limit_default),
                ),
                key_function=_tenant,
                scope=TENANT,
            ),
        ],
        storage_uri=f"{_SCHEME}://",
        storage_options={"connection_pool": redis.connection_pool},  # type: ignore[dict-item]
        strategy="fixed-window",
        # While Redis is away each process counts by itself, and looks for Redis after 1, 2, 4
        # … 32 seconds.
        in_memory_fallback_enabled=True,
        swallow_errors=True,
        headers_enabled=False,
        key_prefix="limit",
    )
    limiter.request_filter(_is_not_counted)
    limiter.init_app(app)
    app.extensions[_STRANGERS] = ByAddress(
        limiter, settings.rate_limit_unauthenticated, what=STRANGER
    )
    app.extensions[_CALLBACKS] = ByAddress(limiter, settings.rate_limit_callbacks, what=CALLBACK)

    @app.after_request
    def tell_limit(response: Response) -> Response:
        if limiter.current_limits:
            _tell(limiter.current_limits, response)
        return response


class ByAddress:
    """Counts one kind of request by the address that it comes from.

    Only this kind counts and only it is refused: behind one address there may be others with
    keys that are right.
    """

    def __init__(self, limiter: Limiter, limit: str, *, what: str) -> None:
        """`limit` in Flask-Limiter's notation."""
        self._what = what
        self._limiter = limiter
        self._here = FixedWindowRateLimiter(MemoryStorage())
        self._limits = parse_many(limit)

    def count(self, address: str) -> None:
        """Count one more. Raises TooManyRequests once there were too many."""
        try:
            waits_s = self._waits_s(self._limiter.limiter, address)
        except RedisError:
            waits_s = self._waits_s(self._here, address)
        if waits_s:
            raise TooManyRequests(retry_after=max(waits_s))

    def _waits_s(self, counter: RateLimiter, address: str) -> list[int]:
        """Of each limit that is used up, the seconds until it begins anew."""
        now = utc_now().timestamp()
        return [
            _reset_s(counter.get_window_stats(limit, self._what, address).reset_time, now)
            for limit in self._limits
            if not counter.hit(limit, self._what, address)
        ]


def count_stranger(app: Flask, address: str | None) -> None:
    """One more attempt from there without a valid key. Raises TooManyRequests."""
    strangers: ByAddress = app.extensions[_STRANGERS]
    strangers.count(address or "unknown")


def count_callback(app: Flask, address: str | None) -> None:
    """One more callback from there, whatever it is about. Raises TooManyRequests."""
    callbacks: ByAddress = app.extensions[_CALLBACKS]
    callbacks.count(address or "unknown")


def _tell(limits: list[RequestLimit], response: Response) -> None:
    """The one with the least left in the old headers, all in those of the IETF's draft."""
    now = utc_now().timestamp()
    told = [(limit, limit.window[1], _reset_s(limit.window[0], now)) for limit in limits]
    policy, state = [], []
    for limit, remaining, reset_s in told:
        name = TENANT if TENANT in limit.request_args else KEY
        policy.append(f'"{name}";q={limit.limit.amount};w={limit.limit.get_expiry()}')
        state.append(f'"{name}";r={max(0, remaining)};t={reset_s}')
    limit, remaining, reset_s = min(told, key=lambda one: one[1])
    response.headers["RateLimit-Limit"] = str(limit.limit.amount)
    response.headers["RateLimit-Remaining"] = str(max(0, remaining))
    response.headers["RateLimit-Reset"] = str(reset_s)
    response.headers["RateLimit-Policy"] = ", ".join(policy)
    response.headers["RateLimit"] = ", ".join(state)
    if any(limit.breached for limit in limits):
        waits = [reset_s for limit, _, reset_s in told if limit.breached]
        response.headers["Retry-After"] = str(max(waits))


def _reset_s(ends_at: float, now: float) -> int:
    return max(1, round(ends_at - now))


@lru_cache(maxsize=1024)
def _limit_of(own: str | None, default: str) -> str:
    """The tenant's own limit. One that can't be read must not stop the counting of all others."""
    try:
        parse_many(own or default)
    except ValueError:
        # Whose it is, the tenant_id of the line says.
        log.error("limit.unreadable")
        return default
    return own or default


@lru_cache(maxsize=1024)
def _tenant_limit_of(own: str | None, of_a_key: str) -> str:
    """The tenant's own limit for all its keys together, else so many times that of one key."""
    many = "; ".join(
        f"{limit.amount * KEYS_AT_ONCE} per {limit.multiples} {limit.GRANULARITY.name}"
        for limit in parse_many(of_a_key)
    )
    return _limit_of(own, many)


def _tenant() -> str:
    return str(g.caller.tenant_id)


def _key() -> str:
    return str(g.caller.key_id)


def _is_not_counted() -> bool:
    return "caller" not in g


def _windows() -> dict[str, tuple[int, float]]:
    """What this request has learned: key → count and end."""
    windows: dict[str, tuple[int, float]] = g.setdefault("limit_windows", {})
    return windows
