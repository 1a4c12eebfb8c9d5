"""The bench works, and a payment costs the database no more than before: counts, no times."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import accept, accept_table, counts, drain, growth, results, room
from bench.accept import Effort
from bench.client import measure
from bench.counts import Count
from bench.endtoend import counted, report
from bench.endtoend.rows import Size
from bench.load import Shot
from bench.room import Room
from bench.sites import Rivals
from devstack.servers import Servers
from payments_app.tenants.accounts import STALE_MAX_S
from payments_app.tenants.caller import KNOWN_FOR_S, USE_NOTED_EVERY_S
from tests.docs.pages import read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

# What one of each costs PostgreSQL: (syncs, statements). Outside a pipeline a sync is a round trip.
# `python -m bench counts --texts` shows what is sent. When a number has become smaller, lower it
# here.
COSTS = {
    "accept": (1, 1),
    "replay": (1, 1),
}
# What the API sends after some time, not for each payment: (syncs, statements, the time in seconds).
# On a slow machine the time passes within a few payments. The last two have a transaction of their
# own, whose first message is two statements.
AFTER_TIME = {
    "SELECT (key).key_hash": (1, 1, KNOWN_FOR_S),
    "SELECT provider_accounts.id": (3, 4, STALE_MAX_S),
    "UPDATE api_keys": (3, 4, USE_NOTED_EVERY_S),
}
# Upper limits, because the costs depend on the number of polls: an account begins with eight slots,
# so ten payments need two polls, and on a slow machine some are due again before the second. A poll
# finds the queues with due work before the claim, and a transaction by index begins with four
# settings, in one message. `look`: a poll when nothing is due, neither payments nor webhooks.
COSTS_MAX = {
    "drain": (7, 24),
    "look": (4, 9),
}
# The highest cost of one payment from POST to its third webhook: see `bench.endtoend.counted`. The
# first four are exact to a fraction of one, on any machine: one more statement, row or claim per
# payment or webhook exceeds them, unless the statement is one of BY_TIME. How many statements share
# a round trip depends on time, so that limit finds only gross errors.
WHOLE_MAX = {
    "singly": 16,
    "rows": 27.7,
    "claims": 2.4,
    "delivery_claims": 3.4,
    "trips": 12.0,
}
# These and the questions of a worker's polls are sent some times a second: on a slow machine, as
# often as there are payments, so that they count as sent singly.
BY_TIME = (
    *AFTER_TIME,
    "SELECT pg_try_advisory_xact_lock",
    "SELECT e.id, e.event_id",
    "WITH RECURSIVE open AS",
    "WITH RECURSIVE queues AS",
)
# From so many for each payment on, a statement counts as sent singly.
SINGLY_MIN = 0.95
LITTLE = Effort(rounds=1, seconds=1, connections=(2,), warm_s=0, known=10, settle_s=0)


@pytest.fixture(scope="module")
def rooms(servers: Servers) -> list[Room]:
    return room.run(payments=400, servers=servers)


@pytest.fixture(scope="module")
def steps(servers: Servers) -> dict[str, Count]:
    return counts.count_ours(servers)


@pytest.mark.parametrize("what", COSTS)
def test_what_it_costs_the_database_is_what_is_written_here(
    steps: dict[str, Count], what: str
) -> None:
    count = steps[what]
    syncs, statements = count.syncs, count.statements
    for start, (its_syncs, its_statements, every_s) in AFTER_TIME.items():
        times = sum(text.startswith(start) for text in count.texts)
        assert times <= 1 + count.took_s / every_s, (start, count.took_s, count.texts)
        syncs -= times * its_syncs / counts.COUNTED
        statements -= times * its_statements / counts.COUNTED
    assert (round(syncs, 1), round(statements, 1)) == COSTS[what], count.texts


@pytest.mark.parametrize("what", COSTS_MAX)
def test_what_a_worker_costs_the_database_is_no_more_than_is_written_here(
    steps: dict[str, Count], what: str
) -> None:
    count, (syncs, statements) = steps[what], COSTS_MAX[what]
    assert round(count.syncs) <= syncs, count.texts
    assert round(count.statements) <= statements, count.texts


def test_a_payment_costs_the_database_no_more_up_to_its_last_webhook(servers: Servers) -> None:
    whole = counted.count_end_to_end(servers)

    found = {what: getattr(whole, what) for what in WHOLE_MAX}
    found["singly"] -= sent_by_time(whole.texts)
    over = {what: number for what, number in found.items() if number > WHOLE_MAX[what]}
    assert not over, counted.table(whole, texts=True)


def sent_by_time(texts: Sequence[str]) -> int:
    """How many of the statements that count as sent singly are sent after some time instead."""
    sent = Counter(text for text in texts if " ".join(text.split()).startswith(BY_TIME))
    shares = (times / counted.COUNTED for times in sent.values())
    return sum(round(share) for share in shares if share >= SINGLY_MIN)


def test_everybody_takes_payments_without_an_error(servers: Servers, tmp_path: Path) -> None:
    done = accept.run(LITTLE, servers=servers)

    assert {
        name: taken[0].load.errors for (name, _), taken in done.rounds.items()
    } == dict.fromkeys((name for name, _ in done.rounds), 0)
    assert {"floor", "plain", "accept", "replay", "get", "list"} <= {
        name for name, _ in done.rounds
    }
    page = tmp_path / "RESULTS.md"
    results.keep("accept", accept_table.tables(done), "python -m bench accept", path=page)
    results.keep("accept", "again", "python -m bench accept", path=page)
    assert page.read_text().count("## accept") == 1
    assert "again" in page.read_text()


def test_payments_are_drained(servers: Servers) -> None:
    done = drain.run(payments=5, rounds=1, servers=servers)

    assert [one.payments for one in done.rounds] == [5]
    assert "payments/s" in drain.table(done)


@pytest.mark.parametrize("endpoints", ["no webhook endpoint", "one webhook endpoint"])
def test_a_payment_takes_the_room_that_the_page_says(rooms: list[Room], endpoints: str) -> None:
    (compact,) = (one for one in rooms if one.name == f"{endpoints}, compacted")
    (grown,) = (one for one in rooms if one.name == endpoints)
    told = re.search(
        rf"{endpoints} \| [\d.]+ to [\d.]+ kB, compacted ([\d.]+) kB \|", read("docs/scaling.md")
    )
    assert told is not None
    # With so few payments no table's last page is full.
    assert compact.bytes_each / 1000 == pytest.approx(float(told[1]), rel=0.15), room.table(rooms)
    assert grown.bytes_each >= compact.bytes_each


def test_payments_are_delivered_end_to_end_in_every_row(servers: Servers) -> None:
    size = Size(
        "one|plain|beside slow|backlog|pace",
        rounds=1,
        payments=20,
        open_loop_min=10,
        slow_answer_s=1.0,
        slow_open=5,
        backlog=30,
        pace_payments=20,
        pace_s=2.0,
        apart=False,
    )
    done = report.run(size, servers)

    measured = [one for (loops,) in done.loops.values() for one in (loops.closed, loops.open)]
    (pair,) = done.fairness["beside slow"]
    measured += [pair.alone, pair.beside]
    assert [(one.ended, one.refused, one.wrong) for one in measured] == [
        *[(20, 0, []), (10, 0, [])] * 2,
        *[(10, 0, [])] * 2,
    ]
    (ours,) = done.loops["one"]
    # A slow receiver's webhook is sent again, and verified like the others.
    webhooks = ours.closed.findings
    assert len(webhooks.times) - webhooks.repeats == 60
    assert webhooks.verified >= len(webhooks.times)
    assert done.pace is not None
    assert done.pace.open == 20
    assert done.backlog is not None
    assert done.backlog.deliveries == 30
    tables = report.tables(done)
    assert all(what in tables for what in ("end to end", "beside", "delivered/s", "claims"))


def test_ended_payments_are_not_read_for_due_work_nor_for_a_page(
    servers: Servers,
) -> None:
    done = growth.run(LITTLE, [3000], servers=servers)

    assert sum(taken[0].load.errors for taken in done.requests.rounds.values()) == 0
    grown = done.sizes[3000]
    # The whole table has more than a hundred pages.
    assert sum(plan.pages for plan in grown.look_plans) < 10, growth.tables(done)
    assert sum(plan.pages for plan in grown.list_plans) < 40, growth.tables(done)


def test_the_python_client_says_what_wrk_says(servers: Servers) -> None:
    with Rivals(servers) as rivals:
        shot = Shot(rivals.start("bare").url, "POST", ("/payments",), body="{}")
        # No request at all is sent if the machine does not run this process in that time.
        told = asyncio.run(measure(shot, 2, 2.0))
        refused = asyncio.run(measure(replace(shot, paths=("/nothing",)), 2, 2.0))

    assert told["errors"] == 0
    assert told["requests"] > 0
    assert refused["errors"] == refused["requests"]
