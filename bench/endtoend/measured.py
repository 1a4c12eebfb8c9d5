"""One measurement: the payments posted, how fast they were delivered, and the CPU time used."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import psycopg

from bench.endtoend.load import Lane, LaneOutcome, Plan
from bench.endtoend.recorded import Findings, check
from bench.endtoend.site import OURS, STAND_INS, Installation, Site, post

# By then the receiver has flushed its buffers to its file.
RECEIVER_FLUSH_S = 0.6
LIMIT_S = 900.0
# The first part of a closed loop does not count for its rate: the load is not steady yet.
_EDGE = 0.1
_ENDED_EVERY_S = 0.05
# A payment that ended a moment ago may be committed only now, so the last 3 s are read again.
_ENDED = """
SELECT id::text, extract(epoch FROM final_at)::float8 FROM payments
WHERE created_at > %(begun)s AND final_at > clock_timestamp() - interval '3 seconds'
"""


@dataclass(frozen=True)
class Measured:
    """Of the awaited lanes. `lags_s`: from the POST's response to the webhook of the end."""

    wanted: int
    refused: int
    per_s: float
    webhooks_per_s: float
    lags_s: list[float]
    # CPU time per payment in milliseconds, by kind of process.
    cpu_ms: dict[str, float]
    findings: Findings

    @property
    def ended(self) -> int:
        """How many payments ended."""
        return len(self.lags_s)

    @property
    def ours_ms(self) -> float:
        """CPU time without the stand-ins."""
        return sum(self.cpu_ms[kind] for kind in OURS)

    @property
    def stand_ins_ms(self) -> float:
        """CPU time of the simulator, the receiver and the load generator."""
        return sum(self.cpu_ms[kind] for kind in STAND_INS)

    @property
    def wrong(self) -> list[str]:
        """The errors found: one sentence for each."""
        missing = self.wanted - self.ended
        late = [f"{missing} payments did not reach their end in time"] if missing else []
        return [*late, *self.findings.wrong]

    def lag_s(self, share: float) -> float:
        """The quantile of the lags for this share."""
        ordered = sorted(self.lags_s) or [0.0]
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    def summary(self) -> str:
        """One line for the terminal."""
        ours = " + ".join(f"{kind} {self.cpu_ms[kind]:.2f}" for kind in OURS)
        others = " + ".join(f"{kind} {self.cpu_ms[kind]:.2f}" for kind in STAND_INS)
        found = self.findings
        return (
            f"{self.ended} of {self.wanted} delivered: {self.per_s:.1f} payments/s,"
            f" {self.webhooks_per_s:.1f} webhooks/s;"
            f" lag p50 {self.lag_s(0.5):.2f} s, p99 {self.lag_s(0.99):.2f} s;"
            f" CPU ms a payment {self.ours_ms:.2f} = {ours}; stand-ins {others};"
            f" {len(found.times)} webhooks, {found.repeats} repeats, {found.verified} signatures"
            f" verified, wrong: {'; '.join(self.wrong[:3]) or 'nothing'}"
        )


def measure(site: Site, lanes: Sequence[Lane], *, ends: str | None = None) -> Measured:
    """Post, wait for the ends, and measure the CPU time and the webhooks received.

    `ends`: the Unix socket that lists ended payments; by default, the receiver's.
    """
    start, used = site.receiver.size, site.cpu_s()
    outcome = post(Plan(ends or site.receiver.socket, list(lanes), LIMIT_S))
    spent = {kind: now - used[kind] for kind, now in site.cpu_s().items()}
    spent["load"] = outcome.cpu_s
    time.sleep(RECEIVER_FLUSH_S)
    pairs = zip(lanes, outcome.lanes, strict=True)
    awaited = [found for lane, found in pairs if not lane.background]
    payments = {one: times for found in awaited for one, times in found.payments.items()}
    ended = {one: times for one, times in payments.items() if times[2] is not None}
    findings = check(site.receiver.since(start), site.secrets, () if ends else ended)
    return Measured(
        wanted=sum(lane.payments for lane in lanes if not lane.background),
        refused=sum(found.refused for found in awaited),
        per_s=_pace((end or 0.0 for _, _, end in ended.values()), awaited),
        webhooks_per_s=_pace(findings.times, awaited),
        lags_s=[(end or 0.0) - answered for _, answered, end in ended.values()],
        cpu_ms={kind: 1000 * seconds / max(1, len(ended)) for kind, seconds in spent.items()},
        findings=findings,
    )


def _pace(times: Iterable[float], awaited: Sequence[LaneOutcome]) -> float:
    """Payments per second, without the first tenth, until the last post."""
    asked = [one for found in awaited for one, _, _ in found.payments.values()]
    ordered = sorted(times)
    if not ordered or not asked:
        return 0.0
    inside = [one for one in ordered[int(len(ordered) * _EDGE) :] if one <= max(asked)]
    if len(inside) < len(ordered) / 2:
        # So few payments that most were posted before the first ended: use all of them.
        return len(ordered) / (ordered[-1] - min(asked))
    return (len(inside) - 1) / (inside[-1] - inside[0])


@contextmanager
def ends_in_database(site: Installation) -> Iterator[str]:
    """A Unix socket that lists ended payments, like the receiver's, but read from the database."""
    with TemporaryDirectory(prefix="ends-") as directory, socket.socket(socket.AF_UNIX) as listener:
        path, stopping = str(Path(directory) / "ends.sock"), Event()
        listener.bind(path)
        listener.listen()
        arguments = (listener, site.stack.administrator_url, stopping)
        thread = Thread(target=_send_ends, args=arguments, daemon=True)
        thread.start()
        try:
            yield path
        finally:
            stopping.set()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _send_ends(listener: socket.socket, url: str, stopping: Event) -> None:
    """Serve one client after the other."""
    with psycopg.connect(url, autocommit=True) as connection, suppress(OSError):
        while not stopping.is_set():
            client, _ = listener.accept()
            with client, suppress(BrokenPipeError, ConnectionResetError):
                _send_to(client, connection, stopping)


def _send_to(client: socket.socket, connection: psycopg.Connection, stopping: Event) -> None:
    """Send ends to the client until it disconnects."""
    client.settimeout(_ENDED_EVERY_S)
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    values, sent = {"begun": row[0] if row else None}, set()
    while not stopping.is_set():
        with suppress(TimeoutError):
            client.recv(1)
            return
        ended = [one for one in connection.execute(_ENDED, values).fetchall() if one[0] not in sent]
        sent |= {one for one, _ in ended}
        client.sendall("".join(f"{one} {at:.6f}\n" for one, at in ended).encode())
