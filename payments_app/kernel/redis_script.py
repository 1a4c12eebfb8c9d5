"""Runs a Lua script in Redis in one round trip, over a connection that each thread keeps."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import NoScriptError
from redis.retry import Retry

from payments_app.kernel import metrics

Word = str | int


class Script:
    """A Lua script. It must be idempotent: `_ask` runs it again if the connection was lost.

    redis-py's own Script takes a connection from a pool, and wraps each command in retries, timings
    and events. That is half of the cost of such a round trip here.
    """

    def __init__(self, redis: Redis, text: str) -> None:
        """`redis` gives the server's address and the connection options."""
        pool = redis.connection_pool
        # No retries by redis-py: `_ask` has its own.
        options = {**pool.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        self._connection = partial(pool.connection_class, **options)
        self._text = text
        self._name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._here = threading.local()

    def __call__(self, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        """Run the script and return its result. Raises RedisError."""
        words = (len(keys), *keys, *arguments)
        try:
            try:
                return self._ask("EVALSHA", self._name, *words)
            except NoScriptError:
                # Redis does not have the script: it is new, or Redis was flushed. EVAL stores it.
                return self._ask("EVAL", self._text, *words)
        except RedisError:
            metrics.redis_errors.inc()
            raise

    def _ask(self, *words: Word) -> Any:
        kept: AbstractConnection | None = getattr(self._here, "kept", None)
        if kept is not None:
            try:
                return self._send(kept, words)
            except ConnectionLost:
                # Mostly it was closed while it was idle, which only the next use shows.
                pass
        # A new connection connects when it sends.
        return self._send(self._connection(), words)

    def _send(self, connection: AbstractConnection, words: Sequence[Word]) -> Any:
        # Whatever interrupts this method, a connection with an unread reply is never used again.
        self._here.kept = None
        connection.send_command(*words)  # type: ignore[no-untyped-call]
        answer = connection.read_response()  # type: ignore[no-untyped-call]
        self._here.kept = connection
        return answer
