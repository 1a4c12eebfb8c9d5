"""How often a key may ask: counted in Redis over all hosts, in this process while Redis is away.

Flask-Limiter decides. What it stores in counts and, in the same round trip, learns when the
window ends: the RateLimit headers ask Redis nothing more.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import structlog
from flask import Flask, Response, g
from flask_limiter import Limiter, RequestLimit
from limits import parse_many
from limits.storage import RedisStorage
from redis import ConnectionPool, Redis

from payments_app.kernel.clock import utc_now
from payments_app.settings import Settings

log = structlog.get_logger(__name__)

_SCHEME: Final = "maramoja-window"
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
    """Count by key, all routes together; a tenant's own limit stands in for the default."""
    limiter = Limiter(
        _key,
        application_limits=[lambda: _limit_of(g.caller.rate_limit, settings.rate_limit_default)],
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

    @app.after_request
    def tell_limit(response: Response) -> Response:
        if limiter.current_limit is not None:
            _tell(limiter.current_limit, response)
        return response


def _tell(current: RequestLimit, response: Response) -> None:
    ends_at, remaining = current.window
    reset_s = max(1, round(ends_at - utc_now().timestamp()))
    response.headers["RateLimit-Limit"] = str(current.limit.amount)
    response.headers["RateLimit-Remaining"] = str(max(0, remaining))
    response.headers["RateLimit-Reset"] = str(reset_s)
    response.headers["RateLimit-Policy"] = f"{current.limit.amount};w={current.limit.get_expiry()}"
    if current.breached:
        response.headers["Retry-After"] = str(reset_s)


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


def _key() -> str:
    return str(g.caller.key_id)


def _is_not_counted() -> bool:
    return "caller" not in g


def _windows() -> dict[str, tuple[int, float]]:
    """What this request has learned: key → count and end."""
    windows: dict[str, tuple[int, float]] = g.setdefault("limit_windows", {})
    return windows
