"""What a payment costs from POST to its last webhook: counts, which no other load disturbs.

The worker is frozen while the payments are posted, so it finds all of them at once, as under load.
What an idle worker sends is counted first, and subtracted.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from bench.accept import PAYMENTS
from bench.counts import Caller, serving
from bench.drain import SILENT
from bench.endtoend.site import Installation, receiving
from bench.tap import Tap, tapped
from devstack.programs import Programs, await_worker
from devstack.servers import Servers
from devstack.stack import Stack
from devstack.supervisor import Process

# The first payments open connections and prepare statements.
COUNTED = WARM = 40
IDLE_S = 3.0
DELIVERED_MAX_S = 90.0
# Of each payment: accepted, pending, successful.
WEBHOOKS = 3
# Begin, settings and end of transactions. Batches send them, not single payments.
_TRANSACTION = ("BEGIN", "COMMIT", "SET ", "SELECT set_config")
_SINGLY_MIN = 0.95
_DELIVERED = "SELECT count(*) FROM webhook_deliveries WHERE status = 'delivered'"
_WRITTEN = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables"
_CLAIMS = "SELECT sum(generation) FROM payments"
_DELIVERY_CLAIMS = "SELECT sum(generation) FROM webhook_deliveries"


@dataclass(frozen=True)
class EndToEnd:
    """Per payment: round trips, statements, rows written, and claims of it and of its deliveries.

    `singly`: the statements that are sent for one payment or one webhook at a time. How many payments
    or webhooks share one of the others depends on timing, and so do round trips.
    """

    trips: float
    statements: float
    singly: int
    rows: float
    claims: float
    delivery_claims: float
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """The tap's counts over so many seconds."""

    seconds: float
    trips: int
    statements: int
    texts: tuple[str, ...]


def count_end_to_end(servers: Servers) -> EndToEnd:
    """Post payments to one API process and one worker behind the tap; wait for all their webhooks."""
    ours = Stack(workers=1, celery_workers=0, beats=0, settings=SILENT, servers=servers)
    with ours as stack, receiving(servers) as receiver, tapped(stack.database_url) as tap:
        tenant = Installation(stack, receiver).tenant("counted")
        programs = Programs({**stack.environment, "DATABASE_URL": tap.url(stack.database_url)})
        with psycopg.connect(stack.administrator_url, autocommit=True) as connection:
            before = _number(connection, _WRITTEN)
            with (
                serving(servers, lambda port: programs.api(port=port, workers=1)) as url,
                _working(servers, programs, stack) as worker,
            ):
                caller = Caller(f"{url}{PAYMENTS}", {"X-API-Key": tenant.key})

                def post(payments: int) -> None:
                    delivered = _number(connection, _DELIVERED)
                    worker.stop()
                    caller.accept(payments)
                    worker.cont()
                    _await_delivered(connection, delivered + payments * WEBHOOKS)

                post(WARM)
                idle = _seen(tap, lambda: time.sleep(IDLE_S))
                busy = _seen(tap, lambda: post(COUNTED))
            # Both processes have ended, so their statistics are complete.
            every = WARM + COUNTED
            return EndToEnd(
                trips=_without(idle, busy, "trips") / COUNTED,
                statements=_without(idle, busy, "statements") / COUNTED,
                singly=_singly(busy.texts),
                rows=(_number(connection, _WRITTEN) - before) / every,
                claims=_number(connection, _CLAIMS) / every,
                delivery_claims=_number(connection, _DELIVERY_CLAIMS) / every,
                texts=busy.texts,
            )


def table(found: EndToEnd, *, texts: bool = False) -> str:
    """A Markdown table; with `texts` also the statements, and how often each is sent per payment."""
    sent = Counter(" ".join(text.split()) for text in found.texts if texts)
    return "\n".join(
        [
            (
                "| for each payment, from POST to its third webhook | round trips to PostgreSQL"
                " | statements | of these singly | rows written | claims | claims of deliveries |"
            ),
            "|---|--:|--:|--:|--:|--:|--:|",
            (
                f"| one tenant, one endpoint, {COUNTED} payments at once | {found.trips:.1f}"
                f" | {found.statements:.1f} | {found.singly} | {found.rows:.1f} | {found.claims:.1f}"
                f" | {found.delivery_claims:.1f} |"
            ),
            *(f"    {times / COUNTED:6.2f} times {text}" for text, times in sent.most_common()),
        ]
    )


@contextmanager
def _working(servers: Servers, programs: Programs, stack: Stack) -> Iterator[Process]:
    worker = servers.supervisor.start(programs.worker(f"counted-{stack.database}"))
    try:
        await_worker(worker, stack.redis.url)
        yield worker
    finally:
        worker.cont()
        worker.terminate()


def _seen(tap: Tap, work: Callable[[], None]) -> _Seen:
    tap.clear()
    started = time.monotonic()
    work()
    seconds = time.monotonic() - started
    return _Seen(seconds, tap.trips, tap.statements, tuple(tap.texts))


def _without(idle: _Seen, busy: _Seen, what: str) -> float:
    """The count, minus that of an idle worker in the same time."""
    return float(getattr(busy, what) - getattr(idle, what) * busy.seconds / idle.seconds)


def _singly(texts: Sequence[str]) -> int:
    """How many statements per payment, of those that no two payments share."""
    sent = Counter(text for text in texts if not text.startswith(_TRANSACTION))
    shares = (times / COUNTED for times in sent.values())
    return sum(round(share) for share in shares if share >= _SINGLY_MIN)


def _await_delivered(connection: psycopg.Connection, wanted: float) -> None:
    deadline = time.monotonic() + DELIVERED_MAX_S
    while _number(connection, _DELIVERED) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(
                "not all webhooks were delivered: look at the logs of worker and receiver"
            )
        time.sleep(0.05)


def _number(connection: psycopg.Connection, question: str) -> float:
    row = connection.execute(question.encode()).fetchone()
    return float(row[0] or 0) if row else 0.0
