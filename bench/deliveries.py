"""Webhooks: deliveries a second, and what one hanging endpoint costs the others.

    python -m bench.deliveries --rounds 4

Two worker processes and a receiver on this machine. The deliveries are put into the database as
rows that fall due one after the other; what is measured is from due to delivered. Rounds with and
without a tenant whose endpoint takes requests and never answers take turns.
"""

from __future__ import annotations

import json
import socketserver
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
import psycopg

from bench.sites import durable_servers
from devstack.servers import Servers
from devstack.stack import Stack

TENANTS = 10
HANG_S = 60.0
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
MAKE = """
WITH e AS (
    INSERT INTO webhook_events (tenant_id, mode, type, data)
    SELECT tenant_id, mode, 'webhook.test', '{{}}' FROM webhook_endpoints, generate_series(1, %(each)s)
    WHERE {which}
    RETURNING number, tenant_id, mode
), numbered AS (
    SELECT *, row_number() OVER (ORDER BY number) AS n FROM e
)
INSERT INTO webhook_deliveries
    (id, tenant_id, mode, endpoint_id, event_number, event_type, body, next_attempt_at)
SELECT gen_random_uuid(), e.tenant_id, e.mode, w.id, e.number, 'webhook.test', '{{"type":"webhook.test"}}',
       clock_timestamp() + interval '1 second' + e.n * make_interval(secs => %(apart_s)s)
FROM numbered e JOIN webhook_endpoints w ON w.tenant_id = e.tenant_id
"""
HANGING = "url LIKE '%%/hang'"
WAITS = (
    "SELECT extract(epoch FROM delivered_at - next_attempt_at) FROM webhook_deliveries d"
    " JOIN webhook_endpoints w ON w.id = d.endpoint_id"
    " WHERE d.created_at >= %s AND w.url NOT LIKE '%%/hang'"
)


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline()
        length = 0
        while (header := self.rfile.readline().strip()) != b"":
            name, _, value = header.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        self.rfile.read(length)
        if b"/hang" in line:
            time.sleep(HANG_S)
        self.wfile.write(ANSWER)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = True


@contextmanager
def receiving() -> Iterator[str]:
    """The address of a receiver that takes everything, or under /hang nothing."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@dataclass
class Installation:
    """The stack's database, by a superuser's hand."""

    connection: psycopg.Connection
    tenants: int

    def make(self, *, each: int, apart_s: float, hanging: bool = False) -> None:
        """So many deliveries for each endpoint, due one after the other."""
        which = HANGING if hanging else f"NOT {HANGING}"
        statement = MAKE.format(which=which)
        self.connection.execute(statement.encode(), {"each": each, "apart_s": apart_s})

    def switch(self, *, hanging: bool) -> None:
        """Let the hanging endpoint be sent to, or not."""
        values = "status = 'enabled', disabled_at = NULL, timeouts = 0, failing_since = NULL"
        if not hanging:
            values = "status = 'disabled', disabled_at = clock_timestamp()"
        statement = f"UPDATE webhook_endpoints SET {values} WHERE {HANGING}"  # noqa: S608  constants
        self.connection.execute(statement.encode())

    def one(self, statement: str, *values: Any) -> list[Any]:
        """The first column."""
        return [row[0] for row in self.connection.execute(statement.encode(), values)]

    def waits_s(self, since: Any) -> list[float]:
        """From due to delivered, of all that were made since; waits until all are."""
        while None in (found := self.one(WAITS, since)):
            time.sleep(0.2)
        return [float(wait) for wait in found]


def add_endpoints(stack: Stack, url: str, *, tenants: int, hanging: bool) -> None:
    """One for each tenant; that of one more hangs, if there is to be one."""
    for number in range(tenants + hanging):
        stack.issue_key(f"bench-{number}")
        path = "/hang" if number == tenants else "/hook"
        stack.flask("webhooks", "add", f"bench-{number}", f"{url}{path}", "--json")


def throughput(installation: Installation, each: int) -> float:
    """Deliveries a second when all are due at once."""
    (since,) = installation.one("SELECT clock_timestamp()")
    installation.make(each=each, apart_s=0.0)
    installation.waits_s(since)
    span = "SELECT extract(epoch FROM max(delivered_at) - min(next_attempt_at)) FROM webhook_deliveries WHERE created_at >= %s"
    return installation.tenants * each / float(installation.one(span, since)[0])


def p99_ms(installation: Installation, each: int, apart_s: float, *, hanging: bool) -> float:
    """What 99 of 100 stay below, in milliseconds."""
    installation.switch(hanging=hanging)
    (since,) = installation.one("SELECT clock_timestamp()")
    installation.make(each=each, apart_s=apart_s)
    waits = sorted(installation.waits_s(since))
    return waits[round(len(waits) * 0.99) - 1] * 1000


@contextmanager
def installed(
    servers: Servers | None = None, *, tenants: int = TENANTS, hanging: bool = False
) -> Iterator[Installation]:
    """A stack with endpoints; one that hangs is not sent to, to begin with."""
    with (
        receiving() as url,
        Stack(workers=1, celery_workers=2, beats=1, servers=servers) as stack,
        psycopg.connect(stack.administrator_url, autocommit=True) as connection,
    ):
        add_endpoints(stack, url, tenants=tenants, hanging=hanging)
        installation = Installation(connection, tenants)
        installation.switch(hanging=False)
        throughput(installation, 10)
        yield installation


def rates(
    *, tries: int = 3, each: int = 100, tenants: int = TENANTS, servers: Servers | None = None
) -> list[float]:
    """Deliveries a second, time after time."""
    with (
        durable_servers(servers) as running,
        installed(running, tenants=tenants) as installation,
    ):
        return [throughput(installation, each) for _ in range(tries)]


def table(found: list[float]) -> str:
    """To read."""
    told = f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})"
    return f"| webhooks, 2 worker processes | |\n|---|---|\n| deliveries/s | {told} |"


@click.command()
@click.option("--rounds", default=4, show_default=True)
@click.option("--each", default=60, show_default=True, help="Deliveries a tenant and round.")
@click.option("--apart-ms", default=40.0, show_default=True, help="From one to the next.")
def main(rounds: int, each: int, apart_ms: float) -> None:
    """Measure and print: the rate, then each round's p99 with and without the hanging one."""
    with installed(hanging=True) as installation:
        found = [throughput(installation, 100) for _ in range(3)]
        print(json.dumps({"deliveries_per_s": [round(rate) for rate in found]}))
        installation.make(each=2000, apart_s=0.0, hanging=True)
        ratios = []
        for number in range(rounds):
            figures = {
                hanging: p99_ms(installation, each, apart_ms / 1000, hanging=hanging)
                for hanging in ((False, True) if number % 2 == 0 else (True, False))
            }
            ratios.append(figures[True] / figures[False])
            print(
                f"p99 {figures[False]:.0f} ms alone, {figures[True]:.0f} ms beside: {ratios[-1]:.2f}"
            )
        print(f"median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
