"""The load generator if wrk is not installed: raw sockets in one process, without an HTTP library.

echo '{"url": "http://127.0.0.1:8000", "paths": ["/"]}' | python -m bench.client 16 3
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from uuid import uuid4

from bench.load import ANSWER_MAX_S, Shot


@dataclass
class Tally:
    """The results of all connections."""

    waits_s: list[float] = field(default_factory=list)
    errors: int = 0


def bytes_of(shot: Shot) -> Iterator[bytes]:
    """Yield one complete request after the other."""
    keys = itertools.cycle(shot.keys) if shot.keys else None
    body = shot.body.encode()
    fixed = "".join(f"{name}: {value}\r\n" for name, value in shot.headers.items())
    fixed += f"Host: {urlsplit(shot.url).netloc}\r\n"
    if body:
        fixed += f"Content-Length: {len(body)}\r\n"
    for path in itertools.cycle(shot.paths):
        key = str(uuid4()) if shot.fresh_keys else next(keys) if keys else None
        own = f"Idempotency-Key: {key}\r\n" if key else ""
        yield f"{shot.method} {path} HTTP/1.1\r\n{fixed}{own}\r\n".encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[bool, bool]:
    """Whether the response was 2xx, and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length or 0))
    return head[9:10] == b"2", b"connection: close" not in head


async def keep_busy(shot: Shot, requests: Iterator[bytes], tally: Tally, deadline: float) -> None:
    """Use one connection: send a request, wait for its response, send the next."""
    address = urlsplit(shot.url)
    writer = None
    while (started := time.perf_counter()) < deadline:
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(next(requests))
            is_good, stays = await asyncio.wait_for(read_answer(reader), ANSWER_MAX_S)
        except (OSError, EOFError, TimeoutError):
            is_good, stays = False, False
        tally.waits_s.append(time.perf_counter() - started)
        tally.errors += not is_good
        if not stays and writer is not None:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def measure(shot: Shot, connections: int, seconds: float) -> dict[str, float]:
    """Send the load, and sum up in wrk's units."""
    tally, requests, started = Tally(), bytes_of(shot), time.perf_counter()
    each = (keep_busy(shot, requests, tally, started + seconds) for _ in range(connections))
    await asyncio.gather(*each)
    elapsed = time.perf_counter() - started
    waits = sorted(tally.waits_s)
    return {
        "requests": len(waits),
        "seconds": elapsed,
        "p50_ms": waits[len(waits) // 2] * 1000,
        "p99_ms": waits[int(len(waits) * 0.99)] * 1000,
        "errors": tally.errors,
    }


if __name__ == "__main__":
    told = asyncio.run(measure(Shot(**json.load(sys.stdin)), int(sys.argv[1]), float(sys.argv[2])))
    print(json.dumps(told))
