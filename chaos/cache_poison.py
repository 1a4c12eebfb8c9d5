"""Stale and wrong keys planted in Redis: locks that nobody holds, tokens that are none."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import redis

# What the gateway calls its lock for a key; it is seen to do so before anything is planted.
LOCK_PATTERN: Final = "idempotency:*"
# A lock lives for some milliseconds: it takes a while until one is seen.
WATCH_MAX_S: Final = 20.0
LOCKS_SEEN: Final = 3
LOOK_EVERY_S: Final = 0.002
# Of the keys that are still to come, this many find a lock that is nobody's.
PLANTED_AHEAD: Final = 200
_NOBODY: Final = "00000000deadbeef:nobody"
_NONSENSE: Final = "\x00nonsense"
_FAR: Final = str(9 * 10**15)


def poison_cache(client: redis.Redis, keys: Sequence[str]) -> bool:
    """Plant them, none with an end; False when no lock of the gateway's was seen to copy."""
    seen = _watch_locks(client)
    _overwrite(client)
    # Locks as they were, digest and all, that no holder will ever release.
    for name, holder in seen.items():
        client.set(name, holder)
    for prefix in {name.rpartition(":")[0] for name in seen}:
        for key in keys[:PLANTED_AHEAD]:
            client.set(f"{prefix}:{key}", _NOBODY, nx=True)
    return bool(seen)


def _watch_locks(client: redis.Redis) -> dict[str, bytes]:
    seen: dict[str, bytes] = {}
    deadline = time.monotonic() + WATCH_MAX_S
    while len(seen) < LOCKS_SEEN and time.monotonic() < deadline:
        for name in client.scan_iter(LOCK_PATTERN, count=1000):
            holder = client.get(name)
            if isinstance(holder, bytes):
                seen[name.decode()] = holder
        time.sleep(LOOK_EVERY_S)
    return seen


def _overwrite(client: redis.Redis) -> None:
    """Tokens, turns, counts: every text says nonsense, for good. Rates end in a far future."""
    for name in client.scan_iter(count=1000):
        kind = client.type(name)
        if kind == b"string" and not name.startswith(b"idempotency:"):
            client.set(name, _NONSENSE)
        elif kind == b"hash":
            for field, _ in client.hscan_iter(name):
                client.hset(name, field, _FAR)
