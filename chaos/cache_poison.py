"""Plants stale and wrong keys in Redis: locks that no process holds, tokens that are not valid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import redis

# The gateway's name for its lock for a key. A real lock is observed before anything is planted.
LOCK_PATTERN: Final = "idempotency:*"
# A lock lives for some milliseconds, so it takes a while until one is observed.
WATCH_MAX_S: Final = 20.0
LOCKS_SEEN: Final = 3
LOOK_EVERY_S: Final = 0.002
# Plant a lock without a holder for this many of the keys that clients have not used yet.
PLANTED_AHEAD: Final = 200
_NOBODY: Final = "00000000deadbeef:nobody"
_NONSENSE: Final = "\x00nonsense"
_FAR: Final = str(9 * 10**15)


def poison_cache(client: redis.Redis, keys: Sequence[str]) -> bool:
    """Plant the keys, all without expiry. Return False when no real lock was observed to copy."""
    seen = _watch_locks(client)
    _overwrite(client)
    # Copies of real locks, with their digests. No holder will ever release them.
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
    """Overwrite tokens, locks and counts with nonsense for good; set rates to a far future."""
    for name in client.scan_iter(count=1000):
        kind = client.type(name)
        if kind == b"string" and not name.startswith(b"idempotency:"):
            client.set(name, _NONSENSE)
        elif kind == b"hash":
            for field, _ in client.hscan_iter(name):
                client.hset(name, field, _FAR)
