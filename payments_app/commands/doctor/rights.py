"""Checks which columns our role may update: those that the gateway updates, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from sqlalchemy import text

from payments_app.commands.doctor.finding import Finding, ok, problem, warning
from payments_app.kernel.database import snapshot

# As migration 0016 and later ones grant them. For a table that isn't here: none.
MAY_CHANGE: Final[Mapping[str, frozenset[str]]] = {
    table: frozenset(columns.split())
    for table, columns in {
        "tenants": "status require_idempotency_key rate_limit tenant_rate_limit default_provider"
        " data_key held_at held_why restored_at",
        "api_keys": "expires_at last_used_at revoked_at",
        "provider_accounts": "base_url target_environment credentials version updated_at",
        "payments": "status stage failure_code failure_provider_code provider_transaction_id"
        " evidence_id sequence next_step next_action_at hinted lease_until generation submissions"
        " submitted_at updated_at final_at payer payer_index payer_masked",
        "events": "position feed_data previous_hash hash content_hash covers",
        "provider_exchanges": "verdict reason http_status body failure_code failure_provider_code"
        " elapsed_ms requests_left finished_at",
        "idempotency_keys": "body headers field_digests",
        "invariant_breaks": "resolved_at resolution",
        "webhook_endpoints": "url description event_types secret previous_secret"
        " previous_secret_until status disabled_reason disabled_at failing_since warned_days timeouts"
        " served_at updated_at deleted_at",
        "webhook_deliveries": "status trigger attempts next_attempt_at lease_until generation"
        " delivered_at",
        "webhook_attempts": "finished_at outcome http_status answer elapsed_ms",
        # The previous release publishes through this view.
        "webhook_events": "position data",
    }.items()
}
# An owner may update everything; the role's check reports it. Partitions are checked too: they may
# be updated only through their table.
_COLUMNS: Final = text(
    """
    SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v')
      AND a.attnum > 0 AND NOT a.attisdropped AND NOT pg_has_role(c.relowner, 'MEMBER')
      AND has_column_privilege(c.oid, a.attnum, 'UPDATE')
    """
)
_OWNS: Final = text(
    "SELECT bool_or(pg_has_role(relowner, 'MEMBER')) FROM pg_class"
    " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
)


def check_columns() -> Iterator[Finding]:
    """Our role may update the columns that the gateway updates, and no others."""
    with snapshot() as connection:
        owns = connection.scalar(_OWNS)
        may = {(table, column) for table, column in connection.execute(_COLUMNS)}
    if owns:
        yield warning("our role owns the tables, and so may change every column", "see above")
        return
    needs = {(table, column) for table, columns in MAY_CHANGE.items() for column in columns}
    if lacking := sorted(needs - may):
        yield problem(
            f"our role may not change: {_told(lacking)}",
            "as the tables' owner: GRANT UPDATE (column) ON table; migration 0016 has all of them",
        )
    if beyond := sorted(may - needs):
        yield problem(
            f"our role may change what it never does: {_told(beyond)}",
            "as the tables' owner: REVOKE UPDATE ON table, then GRANT UPDATE (column) as 0016 does",
        )
    if not (lacking or beyond):
        yield ok("our role may change the columns that it does change, and no others")


def _told(columns: list[tuple[str, str]]) -> str:
    return ", ".join(f"{table}.{column}" for table, column in columns)
