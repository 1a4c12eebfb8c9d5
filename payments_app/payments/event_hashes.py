"""What events cover besides themselves: the first event the order, a final one the end.

The publisher writes it into `events.covers`; its hash is in the event's `content_hash`, which the
checkpoints hash. `flask audit verify` compares payment and answer with it, column by column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson

from payments_app.audit.chain import MICROSECONDS, chain_hash

# The first field of their hashes, and their table's name in a fault.
EVENTS: Final = "payment_events"
PAYMENTS: Final = "payments"
# All as text, as it is hashed: of an event `e`, after the previous hash, and of a payment `p`.
EVENT_FIELDS: Final = f"""
    e.tenant_id::text, e.payment_id::text, e.sequence::text, e.id::text, e.type, e.status, e.stage,
    e.actor, e.request_id, e.data::text, e.transaction_id::text, {MICROSECONDS.format("e.created_at")}
""".strip()
PAYMENT_FIELDS: Final = f"""
    p.id::text, p.tenant_id::text, p.mode, p.flow, p.provider, p.account_id::text, p.base_url,
    p.target_environment, p.merchant, p.reference::text, p.amount_minor::text, p.currency,
    {MICROSECONDS.format("p.created_at")}
""".strip()
PAYMENT_ORDER: Final = "payment_order"
EXCHANGES: Final = "provider_exchanges"
# All as text: what the tenant gave with a payment `p`, beside PAYMENT_FIELDS.
ORDER_FIELDS: Final = """
    p.external_id, p.payer_message, p.payee_note, p.description, p.metadata::text, p.traceparent
""".strip()
# How `p` ended: a final payment never changes these.
END_COLUMNS: Final = {
    "evidence_id": "p.evidence_id::text",
    "provider_transaction_id": "p.provider_transaction_id",
    "failure_code": "p.failure_code",
    "failure_provider_code": "p.failure_provider_code",
    "next_step": "p.next_step",
    "generation": "p.generation::text",
    "submissions": "p.submissions::text",
    "submitted_at": MICROSECONDS.format("p.submitted_at"),
    "updated_at": MICROSECONDS.format("p.updated_at"),
    "final_at": MICROSECONDS.format("p.final_at"),
}
# The provider's answer `x` that ended it: every column.
EVIDENCE_FIELDS: Final = f"""
    x.id::text, x.tenant_id::text, x.payment_id::text, x.generation::text, x.kind, x.reference::text,
    x.verdict, x.reason, x.http_status::text, encode(x.body, 'hex'), x.failure_code,
    x.failure_provider_code, x.elapsed_ms::text, x.requests_left::text,
    {MICROSECONDS.format("x.started_at")}, {MICROSECONDS.format("x.finished_at")}
""".strip()
# Of an event `e`, its payment `p`, and the answer `x` that ended it.
COVERED: Final = f"""
    CASE WHEN e.sequence = 1 THEN ARRAY[{ORDER_FIELDS}] END AS ordered,
    CASE WHEN e.status <> 'PENDING' THEN ARRAY[{", ".join(END_COLUMNS.values())}] END AS ended,
    CASE WHEN e.status <> 'PENDING' THEN ARRAY[{EVIDENCE_FIELDS}] END AS evidence
""".strip()
EVIDENCE: Final = "LEFT JOIN provider_exchanges x ON e.status <> 'PENDING' AND x.id = p.evidence_id"


def covers(row: Any) -> str | None:
    """The document for an event with COVERED; None if it covers nothing but itself."""
    document: dict[str, Any] = {}
    if row.ordered is not None:
        document["order"] = chain_hash(PAYMENT_ORDER, *row.ordered)
    if row.ended is not None:
        document["end"] = _end(row.ended)
        document["evidence"] = chain_hash(EXCHANGES, *row.evidence)
    return orjson.dumps(document).decode() if document else None


def differences(document: str | None, row: Any) -> Iterator[str]:
    """The payment's columns that differ from the event's document; `evidence` for the answer."""
    said = _read(document)
    if row.ordered is not None and said.get("order") != chain_hash(PAYMENT_ORDER, *row.ordered):
        yield "external_id, payer_message, payee_note, description, metadata or traceparent"
    if row.ended is None:
        return
    now, then = _end(row.ended), said.get("end")
    then = then if isinstance(then, dict) else {}
    yield from (name for name in END_COLUMNS if name not in then or then[name] != now[name])
    if said.get("evidence") != chain_hash(EXCHANGES, *row.evidence):
        yield "evidence"


def _end(values: Sequence[str | None]) -> dict[str, str | None]:
    return dict(zip(END_COLUMNS, values, strict=True))


def _read(document: str | None) -> dict[str, Any]:
    """Somebody who recomputed the hashes may have written anything here."""
    try:
        said = orjson.loads(document or "{}")
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}
