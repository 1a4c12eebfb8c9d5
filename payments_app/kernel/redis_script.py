"""A Lua script in Redis, asked in one round trip over a connection that each thread keeps."""

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
    """It must bear being done twice: see `_ask`.

    redis-py's own takes a connection from a pool, and wraps each command in retries, timings and
    events; that is half of what such a round trip costs here.
    """

    def __init__(self, redis: Redis, text: str) -> None:
        """`redis`: where it is, and how it is reached."""
        pool = redis.connection_pool
        # Its own count of failures would add to ours.
        options = {**pool.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        self._connection = partial(pool.connection_class, **options)
        self._text = text
        self._name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._here = threading.local()

    def __call__(self, keys: Sequence[str], arguments: Sequence[Word]) -> Any:
        """What the script returns. Raises RedisError."""
        words = (len(keys), *keys, *arguments)
        try:
            try:
                return self._ask("EVALSHA", self._name, *words)
            except NoScriptError:
                # New, or emptied: Redis keeps the text from now on.
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
                # Mostly it was closed while it rested, which only the next use tells.
                pass
        # It connects as it sends.
        return self._send(self._connection(), words)

    def _send(self, connection: AbstractConnection, words: Sequence[Word]) -> Any:
        # One that is left with an answer unread is never used again, whatever ended us here.
        self._here.kept = None
        connection.send_command(*words)  # type: ignore[no-untyped-call]
        answer = connection.read_response()  # type: ignore[no-untyped-call]
        self._here.kept = connection
        return answer
