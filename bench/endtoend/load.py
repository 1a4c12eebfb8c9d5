"""The load generator, a separate process: POSTs payments over keep-alive connections, awaits their end.

Reads a `Plan` as JSON from its standard input, and writes an `Outcome` as JSON to its output.
Closed loop: a lane posts while fewer than `open_max` of its payments have not ended. Open loop: it
posts `per_s` a second, whatever the responses are. It reads the ends from the Unix socket: one
payment's id per line, optionally followed by the time in seconds since 1970.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from uuid import uuid4

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_ID = re.compile(rb'"id": ?"([0-9a-f-]{36})"')
_TICK_S = 0.01


@dataclass(frozen=True)
class Lane:
    """What one tenant posts. Without `open_max` and `per_s`, as fast as `connections` can.

    A background lane stops when all other lanes are done. Its payments' ends are not awaited.
    """

    host: str
    port: int
    path: str
    key: str
    body: str
    payments: int
    connections: int = 16
    open_max: int | None = None
    per_s: float | None = None
    background: bool = False


@dataclass(frozen=True)
class Plan:
    """All lanes, which run at the same time, for `limit_s` at most."""

    ends: str
    lanes: list[Lane]
    limit_s: float = 600.0


@dataclass
class LaneOutcome:
    """Per payment: (requested, answered, ended), in seconds since 1970. None: not ended in time."""

    payments: dict[str, tuple[float, float, float | None]] = field(default_factory=dict)
    refused: int = 0
    resent: int = 0


@dataclass
class Outcome:
    """Of all lanes, in their order; and the CPU time of this process."""

    lanes: list[LaneOutcome]
    cpu_s: float


class _Connection(asyncio.Protocol):
    """An HTTP connection, with one request at a time."""

    def __init__(self, runner: _Runner) -> None:
        self._runner = runner
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self.key: str | None = None
        self._asked = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  a TCP connection's is one
        self._transport = transport

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def post(self, key: str, request: bytes) -> None:
        assert self._transport is not None  # noqa: S101  it was opened first
        self.key, self._asked = key, time.time()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head = self._rest.find(_END)
        if head < 0:
            return
        length = _LENGTH.search(self._rest, 0, head)
        end = head + len(_END) + (int(length[1]) if length else 0)
        if len(self._rest) < end:
            return
        answer, self._rest, self.key = self._rest[:end], self._rest[end:], None
        if _CLOSES.search(answer, 0, head) and self._transport is not None:
            self._transport.close()
        self._runner.answered(self, answer, self._asked)

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        if self.key is not None:
            self._runner.lost(self)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Runner:
    """A running lane."""

    def __init__(self, lane: Lane, ends: dict[str, float], owners: dict[str, _Runner]) -> None:
        self.lane = lane
        self.outcome = LaneOutcome()
        self._ends, self._owners = ends, owners
        self._idle = deque(_Connection(self) for _ in range(lane.connections))
        self._again: deque[str] = deque()
        self._started = time.time()
        self._sent = self._open = 0
        self._opening: set[asyncio.Task[None]] = set()
        headers = {"Host": f"{lane.host}:{lane.port}", "Content-Type": "application/json"}
        headers |= {"X-API-Key": lane.key, "Content-Length": str(len(lane.body))}
        fixed = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"POST {lane.path} HTTP/1.1\r\n{fixed}Idempotency-Key: ".encode()
        self._tail = _END + lane.body.encode()
        self.stopped = False

    @property
    def is_done(self) -> bool:
        return self._sent >= self.lane.payments and self._open <= 0 and not self._again

    def pump(self) -> None:
        """Post the payments that may be posted now."""
        while self._idle and (key := self._next()):
            connection = self._idle.popleft()
            if connection.is_open:
                connection.post(key, self._head + key.encode() + self._tail)
            else:
                task = asyncio.get_running_loop().create_task(self._post_anew(key))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)

    def _next(self) -> str | None:
        if self.stopped:
            return None
        if self._again:
            return self._again.popleft()
        lane = self.lane
        if (
            self._sent >= lane.payments
            or (lane.open_max is not None and self._open >= lane.open_max)
            or (lane.per_s and self._sent > (time.time() - self._started) * lane.per_s)
        ):
            return None
        self._sent += 1
        self._open += 1
        return str(uuid4())

    async def _post_anew(self, key: str) -> None:
        """Post over a new connection, which replaces a closed one."""
        connection = _Connection(self)
        connection.key = key
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: connection, self.lane.host, self.lane.port)
        except OSError:
            self.lost(connection)
        else:
            connection.post(key, self._head + key.encode() + self._tail)

    def answered(self, connection: _Connection, answer: bytes, asked: float) -> None:
        """Record the response: a payment was created or refused."""
        now = time.time()
        found = _ID.search(answer) if answer[9:10] == b"2" else None
        if found is None:
            self.outcome.refused += 1
            self._open -= 1
            sys.stderr.write(f"refused: {answer[:400]!r}\n")
        else:
            payment_id = found[1].decode()
            self.outcome.payments[payment_id] = (asked, now, None)
            self._owners[payment_id] = self
            if payment_id in self._ends:
                self.ended(payment_id, self._ends.pop(payment_id))
        self._idle.append(connection)
        self.pump()

    def lost(self, connection: _Connection) -> None:
        """The connection broke before the response: post the same key again."""
        self.outcome.resent += 1
        if connection.key:
            self._again.append(connection.key)
        connection.key = None
        self._idle.append(connection)
        self.pump()

    def ended(self, payment_id: str, at: float) -> None:
        """Record that the payment has ended."""
        asked, answered, before = self.outcome.payments[payment_id]
        if before is None:
            self.outcome.payments[payment_id] = (asked, answered, at)
            self._open -= 1
            self.pump()

    def close(self) -> None:
        """Close the connections."""
        self.stopped = True
        for connection in self._idle:
            connection.close()


async def run(plan: Plan) -> Outcome:
    """Post all payments, and wait for their ends."""
    before = time.process_time()
    ends: dict[str, float] = {}
    owners: dict[str, _Runner] = {}
    reader, writer = await asyncio.open_unix_connection(plan.ends)
    listening = asyncio.create_task(_listen(reader, ends, owners))
    runners = [_Runner(lane, ends, owners) for lane in plan.lanes]
    awaited = [runner for runner in runners if not runner.lane.background]
    deadline = time.time() + plan.limit_s
    while time.time() < deadline and not all(runner.is_done for runner in awaited):
        for runner in runners:
            runner.pump()
        await asyncio.sleep(_TICK_S)
    for runner in runners:
        runner.close()
    listening.cancel()
    writer.close()
    return Outcome([runner.outcome for runner in runners], time.process_time() - before)


async def _listen(
    reader: asyncio.StreamReader, ends: dict[str, float], owners: dict[str, _Runner]
) -> None:
    while line := await reader.readline():
        payment_id, _, at = line.decode().strip().partition(" ")
        ended_at = float(at) if at else time.time()
        if (owner := owners.get(payment_id)) is not None:
            owner.ended(payment_id, ended_at)
        else:
            ends[payment_id] = ended_at


def main() -> None:
    """Run the plan on standard input."""
    read = json.load(sys.stdin)
    plan = Plan(read["ends"], [Lane(**lane) for lane in read["lanes"]], read["limit_s"])
    json.dump(asdict(asyncio.run(run(plan))), sys.stdout)


if __name__ == "__main__":
    main()
