"""Due deliveries, inserted as rows."""

from __future__ import annotations

from uuid import UUID

import psycopg

from payments_app.webhooks.endpoints import Owner
from tests.builders import a_caller, an_endpoint

# `payments` payments with `each` events; the body is the event's number in its payment.
FILL = """
    WITH e AS (
        INSERT INTO events (tenant_id, mode, type, feed_data)
        SELECT %(tenant)s, 'live', 'payment.x', '{}' FROM generate_series(1, %(payments)s * %(each)s)
        RETURNING id
    ), n AS (SELECT id AS number, row_number() OVER (ORDER BY id) - 1 AS n FROM e)
    INSERT INTO webhook_deliveries (id, tenant_id, mode, endpoint_id, event_number, event_type,
        payment_id, sequence, body, next_attempt_at)
    SELECT gen_random_uuid(), %(tenant)s, 'live', %(endpoint)s, number, 'payment.x',
        md5(%(endpoint)s || '/' || n / %(each)s)::uuid, n %% %(each)s + 1,
        convert_to((n %% %(each)s + 1)::text, 'UTF8'),
        clock_timestamp() - interval '1 s' + n * interval '1 microsecond'
    FROM n
"""


class Backlogs:
    """Endpoints of new tenants, with due deliveries."""

    def __init__(self, past_rules: psycopg.Connection) -> None:
        self._past_rules = past_rules

    def owner(self) -> Owner:
        caller = a_caller()
        return Owner(caller.tenant_id, caller.mode)

    def endpoint(self, owner: Owner, *, payments: int, each: int = 1) -> UUID:
        endpoint_id = an_endpoint(owner).endpoint.id
        values = {"tenant": owner.tenant_id, "endpoint": endpoint_id}
        self._past_rules.execute(FILL, {**values, "payments": payments, "each": each})
        return endpoint_id

    def run(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        cursor = self._past_rules.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []
