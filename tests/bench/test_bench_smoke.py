"""The bench works, and a payment costs the database what it cost yesterday: counts, no times."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from bench import accept, accept_table, counts, deliveries, drain, growth, results
from bench.accept import Effort
from bench.client import measure
from bench.counts import Count
from bench.load import Shot
from bench.sites import Rivals
from devstack.servers import Servers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

# What one of each costs PostgreSQL: (syncs, statements). Outside a pipeline a sync is a round trip.
# `python -m bench counts --texts` shows what is sent. A number that has become smaller is good
# news: lower it here.
COSTS = {
    "accept": (1, 1),
    "replay": (1, 1),
    "drain": (4, 13),
    "look": (3, 4),
}
LITTLE = Effort(rounds=1, seconds=1, connections=(2,), warm_s=0, known=10, settle_s=0)


@pytest.fixture(scope="module")
def counted(servers: Servers) -> dict[str, Count]:
    return counts.count_ours(servers)


@pytest.mark.parametrize("what", COSTS)
def test_what_it_costs_the_database_is_what_is_written_here(
    counted: dict[str, Count], what: str
) -> None:
    count = counted[what]
    # A key is looked up a few times a second, however many payments that is.
    assert (round(count.syncs), round(count.statements)) == COSTS[what], count.texts


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


def test_webhooks_are_delivered(servers: Servers) -> None:
    assert deliveries.rates(tries=1, each=3, tenants=1, servers=servers)[0] > 0


def test_ended_payments_are_not_read_for_due_work_nor_for_a_page(
    servers: Servers,
) -> None:
    done = growth.run(LITTLE, [3000], servers=servers)

    assert sum(taken[0].load.errors for taken in done.requests.rounds.values()) == 0
    grown = done.sizes[3000]
    # All of them are a hundred pages and more.
    assert sum(plan.pages for plan in grown.look_plans) < 10, growth.tables(done)
    assert sum(plan.pages for plan in grown.list_plans) < 40, growth.tables(done)


def test_the_python_client_says_what_wrk_says(servers: Servers) -> None:
    with Rivals(servers) as rivals:
        shot = Shot(rivals.start("bare").url, "POST", ("/payments",), body="{}")
        told = asyncio.run(measure(shot, 2, 0.5))
        refused = asyncio.run(measure(replace(shot, paths=("/nothing",)), 2, 0.2))

    assert told["errors"] == 0
    assert told["requests"] > 0
    assert refused["errors"] == refused["requests"]
