"""Row-level security alone: SQL without a WHERE reaches no other tenant's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from devstack.servers import Servers
from payments_app.tenants.model import Tenant
from tests.isolation.conftest import MakeApp
from tests.isolation.rows import NO_TENANTS, PLACE, Forgetful, fill


@dataclass(frozen=True)
class Ground:
    """Two tenants with rows in all tables, and the attacker's connections."""

    victim: Tenant
    attacker: Forgetful

    def of(self, tenant: UUID | None) -> Forgetful:
        return replace(self.attacker, tenant=tenant)

    @property
    def tables(self) -> dict[str, str]:
        """Every table and its tenant column. A partition's rows are in its parent table."""
        rows = self.attacker.administrator.execute(
            "SELECT c.relname, max(a.attname) FILTER (WHERE a.attname = 'tenant_id')"
            " FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0"
            " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')"
            " AND NOT c.relispartition GROUP BY c.relname ORDER BY c.relname"
        ).fetchall()
        return {table: column or "id" for table, column in rows if table not in NO_TENANTS}


@contextmanager
def ground_on(database: str, servers: Servers, app_on: MakeApp) -> Iterator[Ground]:
    app = app_on(database)
    victim, other = fill(app), fill(app)
    urls = servers.postgres.application_url(database), servers.postgres.administrator_url(database)
    with ExitStack() as stack:
        connections = [stack.enter_context(psycopg.connect(url, autocommit=True)) for url in urls]
        yield Ground(victim, Forgetful(*connections, other.id))


@pytest.fixture(scope="module")
def ground(walled: str, servers: Servers, app_on: MakeApp) -> Iterator[Ground]:
    with ground_on(walled, servers, app_on) as found:
        yield found


@pytest.fixture(scope="module")
def open_ground(wall_less: str, servers: Servers, app_on: MakeApp) -> Iterator[Ground]:
    with ground_on(wall_less, servers, app_on) as found:
        yield found


def leaks(ground: Ground, attack: Callable[[str, str], object]) -> list[str]:
    """The tables where the attack succeeds."""
    return [table for table, column in ground.tables.items() if attack(table, column)]


def test_every_table_has_a_forced_policy(ground: Ground) -> None:
    without = ground.attacker.administrator.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace"
        " AND c.relkind IN ('r', 'p') AND c.relname <> ALL(%s)"
        " AND NOT (relrowsecurity AND relforcerowsecurity AND EXISTS"
        " (SELECT FROM pg_policy p WHERE p.polrelid = c.oid))",
        [list(NO_TENANTS)],
    ).fetchall()

    assert without == []


def test_nothing_else_leads_around_the_wall(ground: Ground) -> None:
    """Views without `security_invoker` and SECURITY DEFINER functions read as their owner.

    The only one here is a function that returns how many partitions it made and dropped, no row.
    """
    around = ground.attacker.administrator.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('v', 'm', 'f')"
        " AND NOT coalesce(reloptions @> '{security_invoker=true}', false)"
        " UNION ALL SELECT proname FROM pg_proc"
        " WHERE pronamespace = 'public'::regnamespace AND prosecdef"
    ).fetchall()

    assert around == [("turn_webhook_attempts",)]


def test_the_victim_has_rows_in_every_table(ground: Ground) -> None:
    empty = leaks(ground, lambda table, _: not ground.of(ground.victim.id).seen(table))

    assert empty == [], "give it a row in tests/isolation/rows.py"


def theirs_seen(ground: Ground, whose: UUID | None) -> list[str]:
    def seen(table: str, _: str) -> object:
        return ground.of(whose).seen(table) & victims(ground, table)

    return leaks(ground, seen)


def victims(ground: Ground, table: str) -> set[str]:
    """The victim's rows, by their places."""
    column = sql.Identifier(ground.tables[table])
    rows = ground.attacker.administrator.execute(
        sql.SQL("SELECT {} FROM {} WHERE {} = %s").format(PLACE, sql.Identifier(table), column),
        [ground.victim.id],
    )
    return {place for (place,) in rows}


def test_a_select_without_where_shows_nobody_elses_rows(ground: Ground) -> None:
    assert theirs_seen(ground, ground.attacker.tenant) == []


def test_without_a_tenant_there_are_no_rows(ground: Ground) -> None:
    assert leaks(ground, lambda table, _: ground.of(None).seen(table)) == []


@pytest.mark.parametrize("verb", ["update", "delete"])
@pytest.mark.parametrize("whose", ["another tenant", "nobody"])
def test_no_change_reaches_anybody_elses_rows(ground: Ground, verb: str, whose: str) -> None:
    attacker = ground.attacker if whose == "another tenant" else ground.of(None)
    victim = ground.victim.id

    assert leaks(ground, lambda t, c: attacker.reaches(verb, t, c, victim)) == []


# The second is a trigger's error: by row-level security it can't see the event that comes before.
BY_THE_WALL = ("row-level security", "has nothing before it to be linked to")


def test_nothing_can_be_planted_in_another_tenants_name(ground: Ground) -> None:
    for table in ground.tables:
        refusals = [
            ground.attacker.refusal_of_planting(table, place) for place in victims(ground, table)
        ]
        assert "" not in refusals, table
        # Another rule of the table may refuse some of the rows first, but not all of them.
        assert any(word in why for why in refusals for word in BY_THE_WALL), (table, refusals)


def test_nothing_can_be_given_to_another_tenant(ground: Ground) -> None:
    taken = leaks(
        ground,
        lambda table, column: (
            ground.attacker.refusal_of_giving_away(table, column, ground.victim.id) == ""
        ),
    )

    assert taken == []


def test_without_the_policies_all_of_it_is_open(open_ground: Ground) -> None:
    """Without the policies the attacks do succeed, so the tests above can fail."""
    assert theirs_seen(open_ground, open_ground.attacker.tenant) == list(open_ground.tables)
    assert theirs_seen(open_ground, None) == list(open_ground.tables)
    planted = open_ground.attacker.refusal_of_planting(
        "tenants", min(victims(open_ground, "tenants"))
    )
    assert "row-level security" not in planted
