"""How often a key may ask: counted in Redis over all hosts, in this process while Redis is away."""

from __future__ import annotations

import time
from typing import Final

from flask import Flask, Response, g
from flask_limiter import Limiter

from payments_app.settings import Settings

STORAGE_TIMEOUT_S: Final = 0.5


def register_limits(app: Flask, settings: Settings) -> None:
    """Count by key, all routes together; a tenant's own limit stands in for the default."""
    limiter = Limiter(
        _key,
        application_limits=[lambda: g.caller.rate_limit or settings.rate_limit_default],
        application_limits_exempt_when=lambda: "caller" not in g,
        storage_uri=_storage(settings.redis_url),
        storage_options={
            "socket_timeout": STORAGE_TIMEOUT_S,
            "socket_connect_timeout": STORAGE_TIMEOUT_S,
        },
        strategy="fixed-window",
        in_memory_fallback_enabled=True,
        swallow_errors=True,
        headers_enabled=False,
        key_prefix="limit",
    )
    limiter.init_app(app)

    @app.after_request
    def tell_limits(response: Response) -> Response:
        current = limiter.current_limit
        if current is not None:
            reset_s = max(0, int(current.reset_at - time.time()))
            response.headers["RateLimit-Limit"] = str(current.limit.amount)
            response.headers["RateLimit-Remaining"] = str(max(0, current.remaining))
            response.headers["RateLimit-Reset"] = str(reset_s)
            response.headers["RateLimit-Policy"] = (
                f"{current.limit.amount};w={current.limit.get_expiry()}"
            )
            if current.breached:
                response.headers["Retry-After"] = str(max(1, reset_s))
        return response


def _key() -> str:
    return str(g.caller.key_id)


def _storage(redis_url: str) -> str:
    # The limits library has its own word for a unix socket.
    return f"redis+{redis_url}" if redis_url.startswith("unix://") else redis_url
