"""A backlog: many deliveries are due to one endpoint, which works again."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import click
import psycopg

from bench.endtoend.site import OURS, Installation, Tenant
from bench.meters import ask
from bench.sites import site_of

LOOK_EVERY_S = 2.0
STUCK_MAX_S = 60.0
TENTHS = 10
WARM = 50
# Inserts rows as the publisher does. They are due in the past, one after the other.
_MAKE = """
WITH e AS (
    INSERT INTO events (tenant_id, mode, type, feed_data)
    SELECT tenant_id, mode, 'webhook.test', '{}' FROM webhook_endpoints, generate_series(1, %(count)s)
    WHERE webhook_endpoints.id = %(endpoint)s
    RETURNING id AS number, tenant_id, mode
), numbered AS (
    SELECT *, row_number() OVER (ORDER BY number) AS n FROM e
)
INSERT INTO webhook_deliveries
    (id, tenant_id, mode, endpoint_id, event_number, event_type, body, next_attempt_at)
SELECT gen_random_uuid(), e.tenant_id, e.mode, w.id, e.number, 'webhook.test',
       convert_to('{"type":"webhook.test","data":"' || repeat('x', %(bytes)s) || '"}', 'UTF8'),
       clock_timestamp() - interval '1 hour' + e.n * interval '1 millisecond'
FROM numbered e JOIN webhook_endpoints w ON w.id = %(endpoint)s
"""
# As long as the body of a payment's webhook.
BODY_BYTES = 600
_WAITING = "SELECT count(*) FROM webhook_deliveries WHERE status = 'pending'"


@dataclass(frozen=True)
class Drained:
    """Deliveries per second, in all and in each tenth; our CPU time per delivery."""

    deliveries: int
    per_s: float
    tenths: list[float]
    cpu_ms: dict[str, float]


def drained(site: Installation, *, deliveries: int) -> Drained:
    """Insert the deliveries while the workers are frozen, then continue the workers and measure."""
    tenant = site.tenant("backlog")
    _drain(site, tenant, WARM)
    return _drain(site, tenant, deliveries)


def _drain(site: Installation, tenant: Tenant, deliveries: int) -> Drained:
    with site.frozen(), psycopg.connect(site.stack.administrator_url) as connection:
        connection.execute(
            _MAKE.encode(), {"count": deliveries, "bytes": BODY_BYTES, "endpoint": tenant.endpoint}
        )
        connection.commit()
        connection.autocommit = True
        connection.execute("ANALYZE events, webhook_deliveries")
        start, used, started = site.receiver.size, site.cpu_s(), time.time()
    _await_drained(site)
    spent = {kind: now - used[kind] for kind, now in site.cpu_s().items()}
    times = sorted(one.at for one in site.receiver.since(start))
    edges = [times[(len(times) - 1) * part // TENTHS] for part in range(TENTHS + 1)]
    return Drained(
        deliveries=len(times),
        per_s=len(times) / (times[-1] - started),
        tenths=[
            len(times) / TENTHS / max(1e-6, later - earlier)
            for earlier, later in itertools.pairwise(edges)
        ],
        cpu_ms={kind: 1000 * spent[kind] / len(times) for kind in OURS},
    )


def _await_drained(site: Installation) -> None:
    """Wait for all deliveries. Raises TimeoutError if some are pending and none is delivered."""
    size, since, shown = site.receiver.size, time.monotonic(), time.monotonic()
    while waiting := ask(site_of(site.stack), _WAITING):
        time.sleep(LOOK_EVERY_S)
        if site.receiver.size > size:
            size, since = site.receiver.size, time.monotonic()
        elif time.monotonic() - since > STUCK_MAX_S:
            raise TimeoutError(f"{waiting:.0f} deliveries wait, and none is sent")
        if time.monotonic() - shown > STUCK_MAX_S:
            click.echo(f"backlog: {waiting:.0f} wait", err=True)
            shown = time.monotonic()
    time.sleep(LOOK_EVERY_S)
