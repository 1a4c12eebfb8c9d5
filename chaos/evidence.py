"""All evidence of a run, typed, from all sources.

The clients' history, the API's answers at the end, the webhooks received, the database (read as
its superuser), and the provider's ledger and log. The verdicts are computed from it alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, TypeVar

import psycopg
import requests
from psycopg.rows import class_row

from chaos.history import Line
from chaos.provider import ProviderAdmin

T = TypeVar("T")

READERS: Final = 4
READ_MAX_S: Final = 10.0
READ_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class PaymentRow:
    """A payment row in the database. Times are seconds since the epoch."""

    id: str
    tenant: str
    chaos_key: str | None
    reference: str
    amount_minor: int
    currency: str
    payer_masked: str | None
    external_id: str | None
    status: str
    stage: str
    generation: int
    submissions: int
    evidence_verdict: str | None
    next_action_at: float | None
    lease_until: float | None
    created_at: float
    final_at: float | None


@dataclass(frozen=True, slots=True)
class KeyRow:
    """An idempotency key in the database."""

    tenant: str
    key: str
    payment_id: str


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """One exchange with the provider, as the gateway recorded it."""

    payment_id: str
    generation: int
    kind: str
    reference: str
    verdict: str | None
    reason: str | None
    started_at: float
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class EventRow:
    """One event of a payment."""

    payment_id: str
    sequence: int
    type: str
    status: str
    stage: str
    at: float


@dataclass(frozen=True, slots=True)
class Creation:
    """A payment in the provider's records. `payment_id` is the external id that we sent."""

    reference: str
    payment_id: str | None
    amount: str
    currency: str
    party: str
    status: str
    at: float
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class Movement:
    """A movement of money in the provider's ledger."""

    reference: str
    payment_id: str | None
    amount: str
    currency: str
    at: float


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A request that reached the provider."""

    operation: str
    reference: str | None
    status: int | None
    fault: str | None
    at: float


@dataclass(frozen=True, slots=True)
class Told:
    """A webhook that a tenant's endpoint received. `stamped_s`: its timestamp minus the true time.

    `genuine`: signed with this tenant's secret. `taken`: it was answered with 200.
    """

    tenant: str
    message_id: str
    digest: str
    payment_id: str | None
    sequence: int | None
    genuine: bool
    stamped_s: float
    taken: bool
    at: float


@dataclass(frozen=True, slots=True)
class Shown:
    """A payment as the API shows it to its tenant at the end of the run."""

    status: int
    document: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which a process or server was unavailable."""

    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """All evidence. `taken_at`: when the database was read. `told` None: there was no listener."""

    taken_at: float
    lines: Sequence[Line] = ()
    payments: Sequence[PaymentRow] = ()
    keys: Sequence[KeyRow] = ()
    exchanges: Sequence[ExchangeRow] = ()
    events: Sequence[EventRow] = ()
    creations: Sequence[Creation] = ()
    movements: Sequence[Movement] = ()
    wire: Sequence[WireRequest] = ()
    shown: Mapping[str, Shown] = field(default_factory=dict)
    database_away: Sequence[Window] = ()
    redis: bool = True
    told: Sequence[Told] | None = None


_PAYMENTS: Final = """
SELECT p.id::text, t.slug AS tenant, p.metadata->>'key' AS chaos_key, p.reference::text,
    p.amount_minor, p.currency, p.payer_masked, p.external_id, p.status, p.stage, p.generation,
    p.submissions, x.verdict AS evidence_verdict,
    extract(epoch FROM p.next_action_at)::float8 AS next_action_at,
    extract(epoch FROM p.lease_until)::float8 AS lease_until,
    extract(epoch FROM p.created_at)::float8 AS created_at,
    extract(epoch FROM p.final_at)::float8 AS final_at
FROM payments p JOIN tenants t ON t.id = p.tenant_id
LEFT JOIN provider_exchanges x ON x.id = p.evidence_id
"""
_KEYS: Final = """
SELECT t.slug AS tenant, k.key::text, k.resource_id::text AS payment_id
FROM idempotency_keys k JOIN tenants t ON t.id = k.tenant_id
WHERE k.resource_id IS NOT NULL
"""
_EXCHANGES: Final = """
SELECT payment_id::text, generation, kind, reference::text, verdict, reason,
    extract(epoch FROM started_at)::float8 AS started_at,
    extract(epoch FROM finished_at)::float8 AS finished_at
FROM provider_exchanges ORDER BY id
"""
_EVENTS: Final = """
SELECT payment_id::text, sequence, type, status, stage,
    extract(epoch FROM created_at)::float8 AS at
FROM events ORDER BY payment_id, sequence
"""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the evidence is read from."""

    database_url: str
    api_url: str
    api_keys: Mapping[str, str]
    provider: ProviderAdmin


def gather(
    sources: Sources,
    lines: Sequence[Line],
    *,
    database_away: Sequence[Window],
    redis: bool,
    told: Sequence[Told],
) -> Evidence:
    """Read everything, the API last: it must agree with the database."""
    taken_at = time.time()
    with psycopg.connect(sources.database_url) as connection:
        payments = _read(connection, PaymentRow, _PAYMENTS)
        keys = _read(connection, KeyRow, _KEYS)
        exchanges = _read(connection, ExchangeRow, _EXCHANGES)
        events = _read(connection, EventRow, _EVENTS)
    return Evidence(
        taken_at=taken_at,
        lines=tuple(lines),
        payments=payments,
        keys=keys,
        exchanges=exchanges,
        events=events,
        creations=[_creation(row) for row in sources.provider.rows("payments")],
        movements=[_movement(row) for row in sources.provider.rows("ledger")],
        wire=[_wire_request(row) for row in sources.provider.rows("requests")],
        shown=_ask_api(sources, lines, payments),
        database_away=tuple(database_away),
        redis=redis,
        told=tuple(told),
    )


def _read(connection: psycopg.Connection, kind: type[T], query: str) -> list[T]:
    with connection.cursor(row_factory=class_row(kind)) as cursor:
        return cursor.execute(query.encode()).fetchall()


def _ask_api(
    sources: Sources, lines: Sequence[Line], payments: Sequence[PaymentRow]
) -> dict[str, Shown]:
    """Read, as its tenant, every payment that a client received or that the database has."""
    wanted = {(row.tenant, row.id) for row in payments}
    for line in lines:
        if line.act == "pay" and line.outcome == "ok" and line.body:
            wanted.add((line.tenant, str(_document(line.body).get("id"))))

    def ask(one: tuple[str, str]) -> tuple[str, Shown]:
        tenant, payment_id = one
        return payment_id, _show(sources.api_url, sources.api_keys[tenant], payment_id)

    with ThreadPoolExecutor(READERS) as pool:
        return dict(pool.map(ask, sorted(wanted)))


def _show(api_url: str, key: str, payment_id: str) -> Shown:
    url = f"{api_url}/api/v1/payments/{payment_id}"
    found = _patiently(lambda: _get(url, key))
    told = _patiently(lambda: _get(f"{url}/events?limit=100", key))
    events = _document(told.text).get("data", [])
    return Shown(found.status_code, _document(found.text), events)


def _get(url: str, key: str) -> requests.Response:
    return requests.get(url, headers={"X-API-Key": key}, timeout=READ_MAX_S)


def _patiently(ask: Callable[[], requests.Response]) -> requests.Response:
    """Retry some times: after recovery, a pooled connection may still break once."""
    for _ in range(READ_TRIES - 1):
        try:
            answer = ask()
        except requests.RequestException:
            time.sleep(0.5)
            continue
        if answer.status_code < 500:  # noqa: PLR2004
            return answer
        time.sleep(0.5)
    return ask()


def _creation(row: Mapping[str, Any]) -> Creation:
    return Creation(
        reference=row["reference_id"],
        payment_id=row["external_id"],
        amount=row["amount"],
        currency=row["currency"],
        party=row["party"],
        status=row["status"],
        at=_instant(row["at"]),
        ended_at=_instant(row["ended_at"]) if row["ended_at"] else None,
    )


def _movement(row: Mapping[str, Any]) -> Movement:
    return Movement(
        reference=row["reference_id"],
        payment_id=row["external_id"],
        amount=row["amount"],
        currency=row["currency"],
        at=_instant(row["at"]),
    )


def _wire_request(row: Mapping[str, Any]) -> WireRequest:
    return WireRequest(
        operation=row["operation"],
        reference=row["reference_id"],
        status=row["status"],
        fault=row["fault"],
        at=_instant(row["at"]),
    )


def _instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
