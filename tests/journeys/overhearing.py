"""Records every command that any client sends to a Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from devstack.redis_server import RedisServer


@contextmanager
def overheard(server: RedisServer) -> Iterator[list[str]]:
    """A list to which each command is added, with its arguments, while the block runs."""
    heard: list[str] = []
    ended = threading.Event()
    # Without a time limit: after an outage nobody may send a command for seconds.
    with redis.Redis.from_url(server.url) as spy, server.client() as talker:
        listener = threading.Thread(target=_listen, args=(spy, heard, ended))
        listener.start()
        while not heard:
            talker.ping()
        try:
            yield heard
        finally:
            ended.set()
            # One more command, so that the thread's read returns.
            talker.ping()
            listener.join()


def _listen(spy: redis.Redis, heard: list[str], ended: threading.Event) -> None:
    with spy.monitor() as monitor:  # type: ignore[no-untyped-call]  # redis-py has no type for it
        while not ended.is_set():
            heard.append(monitor.next_command()["command"])
