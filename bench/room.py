"""What an ended payment takes on disk: the tables with their indexes, divided by payments.

    python -m bench.room --payments 3000

The payments are real: they go through the API, the workers and the simulator, of one tenant without a
webhook endpoint and then of one with one endpoint on `payment.*`. Each time it waits until all payments
have ended and all events are published and delivered. It divides the growth of all tables'
`pg_total_relation_size` since a `VACUUM FULL`: first as it is then, with the old rows that autovacuum
has left, and then after another `VACUUM FULL`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import click
import psycopg

from bench.accept import known_payments
from bench.endtoend.site import Installation, Tenant, installed
from bench.sites import durable_servers
from devstack.servers import Servers

WARM = 50
ENDED_MAX_S = 900.0
LOOK_EVERY_S = 0.5
# Partitions count for their parent, each with its indexes and its TOAST table.
_SIZES = """
SELECT coalesce(parent.relname, c.relname) AS name, sum(pg_total_relation_size(c.oid))::bigint
FROM pg_class c
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
LEFT JOIN pg_class parent ON parent.oid = i.inhparent
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
GROUP BY 1
"""
_UNFINISHED = """
SELECT (SELECT count(*) FROM payments WHERE status = 'PENDING')
     + (SELECT count(*) FROM events WHERE feed_data IS NULL)
     + (SELECT count(*) FROM webhook_deliveries WHERE status = 'pending')
"""


@dataclass(frozen=True)
class Room:
    """Bytes per payment by table, for payments of one kind."""

    name: str
    payments: int
    tables: Mapping[str, float]

    @property
    def bytes_each(self) -> float:
        """Bytes per payment in all tables together."""
        return sum(self.tables.values())


def run(*, payments: int, servers: Servers | None = None) -> list[Room]:
    """Measure without an endpoint, then with one."""
    with durable_servers(servers) as running, installed(running) as site:
        plain = site.tenant("plain", path=None)
        told = site.tenant("told")
        return [
            *measured(site, plain, "no webhook endpoint", payments),
            *measured(site, told, "one webhook endpoint", payments),
        ]


def measured(site: Installation, tenant: Tenant, name: str, payments: int) -> tuple[Room, Room]:
    """Process so many of this tenant's payments; the tables as they are then, and compacted."""
    _bring(site, tenant, min(WARM, payments))
    before = _compacted(site)
    _bring(site, tenant, payments)
    found = {name: _sizes(site), f"{name}, compacted": _compacted(site)}
    grown, compact = (
        Room(
            title,
            payments,
            {one: (size - before.get(one, 0)) / payments for one, size in sizes.items()},
        )
        for title, sizes in found.items()
    )
    return grown, compact


def _bring(site: Installation, tenant: Tenant, payments: int) -> None:
    """Create payments and wait for their end. Raises TimeoutError if they take too long."""
    known_payments(site.stack.api_url, tenant.key, payments)
    deadline = time.monotonic() + ENDED_MAX_S
    with psycopg.connect(site.stack.administrator_url, autocommit=True) as connection:
        while (rest := connection.execute(_UNFINISHED.encode()).fetchone()) != (0,):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ended, not published or not delivered: {rest}")
            time.sleep(LOOK_EVERY_S)


def _sizes(site: Installation) -> dict[str, int]:
    with psycopg.connect(site.stack.administrator_url, autocommit=True) as connection:
        return {str(name): int(size) for name, size in connection.execute(_SIZES.encode())}


def _compacted(site: Installation) -> dict[str, int]:
    with psycopg.connect(site.stack.administrator_url, autocommit=True) as connection:
        connection.execute("VACUUM FULL")
    return _sizes(site)


def table(done: list[Room]) -> str:
    """A Markdown table, without tables that grew by less than a byte per payment."""
    names = sorted({name for room in done for name, each in room.tables.items() if each >= 1})
    lines = [
        f"| bytes for each ended payment | {' | '.join(room.name for room in done)} |",
        f"|---|{'--:|' * len(done)}",
        f"| all | {' | '.join(f'{room.bytes_each:.0f}' for room in done)} |",
    ]
    lines += [
        f"| {name} | {' | '.join(f'{room.tables.get(name, 0):.0f}' for room in done)} |"
        for name in names
    ]
    return "\n".join(lines)


@click.command()
@click.option("--payments", default=3000, show_default=True, help="Of each kind.")
def main(payments: int) -> None:
    """Measure, and print a table."""
    click.echo(table(run(payments=payments)))


if __name__ == "__main__":
    main()
