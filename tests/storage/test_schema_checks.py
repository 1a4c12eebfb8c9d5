"""Each CHECK and UNIQUE of the schema, tested alone: one column wrong, all triggers off."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

TENANT: Final = UUID(int=1)
OTHER_TENANT: Final = UUID(int=2)
NOW: Final = datetime(2026, 11, 20, tzinfo=UTC)
Row = dict[str, Any]

# A valid row of each table. Foreign keys are triggers, so they are off here.
ROWS: Final[dict[str, Row]] = {
    "tenants": {"id": TENANT, "slug": "acme", "name": "Acme"},
    "api_keys": {
        "id": UUID(int=3),
        "tenant_id": TENANT,
        "prefix": "mara_live_abc",
        "key_hash": b"h" * 32,
        "mode": "live",
    },
    "provider_accounts": {
        "id": UUID(int=4),
        "tenant_id": TENANT,
        "provider": "mtn_momo",
        "mode": "live",
        "base_url": "https://provider.example",
        "target_environment": "sandbox",
        "credentials": "encrypted",
    },
    "payments": {
        "id": UUID(int=5),
        "tenant_id": TENANT,
        "mode": "live",
        "flow": "collection",
        "provider": "mtn_momo",
        "base_url": "https://provider.example",
        "target_environment": "mtnuganda",
        "merchant": "shop",
        "reference": UUID(int=6),
        "amount_minor": 1000,
        "currency": "UGX",
        "payer": b"sealed",
        "payer_index": b"digest",
        "payer_masked": "*********456",
        "external_id": "order-1",
        "status": "PENDING",
        "stage": "accepted",
        "sequence": 1,
        "next_step": "submit",
        "next_action_at": NOW,
        "generation": 0,
        "submissions": 0,
        "created_at": NOW,
        "updated_at": NOW,
    },
    "events": {
        "tenant_id": TENANT,
        "mode": "live",
        "payment_id": UUID(int=5),
        "sequence": 1,
        "type": "payment.accepted",
        "status": "PENDING",
        "stage": "accepted",
        "actor": "engine",
        "position": 1,
        "feed_data": b"{}",
        "previous_hash": b"h" * 32,
        "hash": b"h" * 32,
    },
    "provider_exchanges": {
        "tenant_id": TENANT,
        "payment_id": UUID(int=5),
        "generation": 1,
        "kind": "check",
        "reference": UUID(int=6),
        "verdict": "PENDING",
        "finished_at": NOW,
    },
    "callbacks": {
        "tenant_id": TENANT,
        "payment_id": UUID(int=5),
        "digest": b"d" * 32,
        "method": "POST",
        "body": b"{}",
    },
    "idempotency_keys": {
        "tenant_id": TENANT,
        "mode": "live",
        "key": UUID(int=7),
        "fingerprint": b"f" * 32,
        "fingerprint_version": 1,
        "resource_id": UUID(int=5),
        "status": 201,
        "body": b"{}",
        "expires_at": NOW,
    },
    "webhook_endpoints": {
        "id": UUID(int=7),
        "tenant_id": TENANT,
        "mode": "live",
        "url": "https://shop.example/hook",
        "event_types": ["*"],
        "secret": "encrypted",
    },
    "webhook_deliveries": {
        "id": UUID(int=9),
        "tenant_id": TENANT,
        "mode": "live",
        "endpoint_id": UUID(int=7),
        "event_number": 1,
        "event_type": "payment.accepted",
        "payment_id": UUID(int=5),
        "sequence": 1,
        "body": b"{}",
    },
    "webhook_attempts": {
        "tenant_id": TENANT,
        "delivery_id": UUID(int=9),
        "generation": 1,
        "trigger": "schedule",
        "url": "https://shop.example/hook",
    },
    "invariant_breaks": {
        "tenant_id": TENANT,
        "invariant": "end_stands",
        "subject": "a payment",
        "detail": "SUCCESSFUL, and later the provider said FAILED",
    },
    "audit_entries": {
        "tenant_id": TENANT,
        "actor": "cli:ada",
        "action": "tenant.created",
        "subject_type": "tenant",
        "subject_id": "1",
        "position": 1,
        "previous_hash": b"h" * 32,
        "hash": b"h" * 32,
    },
}
PAID: Final[Row] = {
    "status": "SUCCESSFUL",
    "stage": "final",
    "evidence_id": 1,
    "final_at": NOW,
    "next_action_at": None,
}
OF_NO_PAYMENT: Final[Row] = dict.fromkeys(
    ("payment_id", "sequence", "status", "stage", "actor", "hash", "previous_hash")
)
FAILED: Final[Row] = {**PAID, "status": "FAILED", "failure_code": "payer_rejected"}

# (what is wrong in the row, the constraint that must refuse it)
ATTACKS: Final[list[tuple[Row, str]]] = [
    ({"mode": "sandbox"}, "ck_payments_mode_known"),
    ({"flow": "gift"}, "ck_payments_flow_known"),
    ({"amount_minor": 0}, "ck_payments_amount_positive"),
    ({"amount_minor": -1000}, "ck_payments_amount_positive"),
    ({"currency": "ugx"}, "ck_payments_currency_form"),
    ({"currency": "UGXX"}, "ck_payments_currency_form"),
    ({"currency": ""}, "ck_payments_currency_form"),
    ({"traceparent": "00-x"}, "ck_payments_traceparent_form"),
    ({"traceparent": f"00-{'0' * 32}-{'1' * 16}-01"}, "ck_payments_traceparent_form"),
    ({"traceparent": f"00-{'1' * 32}-{'0' * 16}-01"}, "ck_payments_traceparent_form"),
    ({"traceparent": f"01-{'1' * 32}-{'1' * 16}-01"}, "ck_payments_traceparent_form"),
    ({"payer_index": None}, "ck_payments_payer_goes_whole"),
    ({"payer_masked": None}, "ck_payments_payer_goes_whole"),
    (
        {"payer": None, "payer_index": None, "payer_masked": None},
        "ck_payments_open_has_payer",
    ),
    ({**PAID, "status": "REVERSED"}, "ck_payments_status_known"),
    ({"stage": "lost"}, "ck_payments_stage_known"),
    ({"next_step": "wait"}, "ck_payments_step_known"),
    ({"stage": "final"}, "ck_payments_final_has_ended"),
    ({**PAID, "stage": "unknown"}, "ck_payments_final_has_ended"),
    ({"next_action_at": None}, "ck_payments_open_is_never_forgotten"),
    ({**PAID, "next_action_at": NOW}, "ck_payments_open_is_never_forgotten"),
    ({**FAILED, "next_action_at": NOW}, "ck_payments_open_is_never_forgotten"),
    ({**PAID, "evidence_id": None}, "ck_payments_end_has_evidence"),
    ({**FAILED, "evidence_id": None}, "ck_payments_end_has_evidence"),
    ({"evidence_id": 1}, "ck_payments_end_has_evidence"),
    ({**PAID, "final_at": None}, "ck_payments_end_has_time"),
    ({**FAILED, "final_at": None}, "ck_payments_end_has_time"),
    ({"final_at": NOW}, "ck_payments_end_has_time"),
    ({**FAILED, "failure_code": None}, "ck_payments_failure_has_code"),
    ({**PAID, "failure_code": "other"}, "ck_payments_failure_has_code"),
    ({"failure_code": "other"}, "ck_payments_failure_has_code"),
    ({"sequence": 0}, "ck_events_sequence_positive"),
    *(
        ({column: None}, "ck_events_of_payment_is_whole")
        for column in ("sequence", "status", "stage", "actor")
    ),
    (
        {**OF_NO_PAYMENT, "position": None, "feed_data": None},
        "ck_events_of_no_payment_is_published",
    ),
    (
        {**OF_NO_PAYMENT, "hash": b"h" * 32, "previous_hash": b"h" * 32},
        "ck_events_of_no_payment_is_published",
    ),
    ({"feed_data": None}, "ck_events_published_is_whole"),
    ({"hash": None, "previous_hash": None}, "ck_events_published_is_chained"),
    ({"previous_hash": None}, "ck_events_hash_has_link"),
    ({"kind": "guess"}, "ck_provider_exchanges_kind_known"),
    ({"kind": "submit", "verdict": None}, "ck_provider_exchanges_closed_has_verdict"),
    ({"kind": "submit", "finished_at": None}, "ck_provider_exchanges_closed_has_verdict"),
    ({"verdict": None, "finished_at": None}, "ck_provider_exchanges_only_submit_is_open"),
    *(
        (
            {"kind": "submit", "requests_left": 2, "verdict": verdict},
            "ck_provider_exchanges_weak_verdict_is_of_one_request",
        )
        for verdict in ("REFUSED", "NOT_SENT", "NOT_FOUND", "FAILED")
    ),
    ({"requests_left": -1}, "ck_provider_exchanges_requests_left_counted"),
    ({"mode": "both"}, "ck_idempotency_keys_mode_known"),
    ({"fingerprint": b"f" * 31}, "ck_idempotency_keys_fingerprint_is_sha256"),
    ({"fingerprint": b""}, "ck_idempotency_keys_fingerprint_is_sha256"),
    ({"resource_id": None}, "ck_idempotency_keys_stands_for_one_thing"),
    ({"resource_path": "/api/v1/x"}, "ck_idempotency_keys_stands_for_one_thing"),
    ({"mode": "both"}, "ck_api_keys_mode_known"),
    ({"key_hash": b"mara_live_a_whole_key"}, "ck_api_keys_hash_is_sha256"),
    ({"scopes": ["everything"]}, "ck_api_keys_scopes_known"),
    ({"scopes": []}, "ck_api_keys_scopes_known"),
    ({"mode": "both"}, "ck_provider_accounts_mode_known"),
    (
        {"mode": "test", "target_environment": "mtnuganda"},
        "ck_provider_accounts_test_is_sandbox",
    ),
    ({"slug": "Not A Slug"}, "ck_tenants_slug_form"),
    ({"status": "deleted"}, "ck_tenants_status_known"),
    ({"held_at": NOW}, "ck_tenants_held_has_reason"),
    ({"held_why": "because"}, "ck_tenants_held_has_reason"),
    ({"resolved_at": NOW}, "ck_invariant_breaks_resolved_has_reason"),
    ({"resolution": "looked at"}, "ck_invariant_breaks_resolved_has_reason"),
    ({"mode": "both"}, "ck_webhook_endpoints_mode_known"),
    ({"status": "asleep"}, "ck_webhook_endpoints_status_known"),
    ({"secret": None}, "ck_webhook_endpoints_secret_goes_with_it"),
    (
        {"deleted_at": NOW, "status": "disabled", "disabled_at": NOW},
        "ck_webhook_endpoints_secret_goes_with_it",
    ),
    ({"deleted_at": NOW, "secret": None}, "ck_webhook_endpoints_removed_is_disabled"),
    ({"status": "disabled"}, "ck_webhook_endpoints_disabled_has_time"),
    ({"disabled_at": NOW}, "ck_webhook_endpoints_disabled_has_time"),
    ({"status": "lost"}, "ck_webhook_deliveries_status_known"),
    ({"status": "delivered"}, "ck_webhook_deliveries_has_time"),
    ({"delivered_at": NOW}, "ck_webhook_deliveries_has_time"),
    ({"outcome": "delivered"}, "ck_webhook_attempts_closed_has_outcome"),
    ({"finished_at": NOW}, "ck_webhook_attempts_closed_has_outcome"),
]

# (where the second row differs, the constraint that must refuse the rest as a duplicate)
COPIES: Final[list[tuple[Row, str]]] = [
    ({"id": UUID(int=50), "external_id": "order-2"}, "uq_payments_reference"),
    (
        {"id": UUID(int=50), "reference": UUID(int=60), "payer": b"other"},
        "uq_payments_tenant_id_mode_external_id",
    ),
    ({"fingerprint": b"g" * 32, "resource_id": UUID(int=50)}, "pk_idempotency_keys"),
    ({"position": 2}, "uq_events_payment_id_sequence"),
    ({"sequence": 2}, "uq_events_tenant_id_mode_position"),
    ({"hash": b"i" * 32}, "uq_audit_entries_tenant_id_position"),
    ({"kind": "submit"}, "uq_provider_exchanges_payment_id_generation"),
    ({"body": b"[]"}, "uq_callbacks_payment_id_digest"),
    ({"id": OTHER_TENANT}, "uq_tenants_slug"),
    ({"id": UUID(int=50), "tenant_id": OTHER_TENANT}, "uq_api_keys_prefix"),
    ({"id": UUID(int=50)}, "uq_provider_accounts_tenant_id_provider_mode"),
    ({"id": UUID(int=50)}, "uq_webhook_deliveries_event_number_endpoint_id"),
    ({"detail": "otherwise"}, "uq_invariant_breaks_tenant_id_invariant_subject"),
    # PostgreSQL reports the partition's constraint.
    ({"url": "https://other.example"}, "pk_webhook_attempts_before"),
]

# Rows that are no duplicates: the same values, in another tenant or in the other mode.
NEIGHBOURS: Final[list[tuple[str, Row]]] = [
    (table, {**own, **apart})
    for table, own in (
        ("payments", {"id": UUID(int=50), "reference": UUID(int=60)}),
        ("idempotency_keys", {}),
        ("provider_accounts", {"id": UUID(int=50)}),
    )
    for apart in ({"tenant_id": OTHER_TENANT}, {"mode": "test"})
]


@pytest.fixture
def lawless(administrator_url: str) -> Iterator[psycopg.Connection]:
    """A connection whose writes fire no trigger: only the constraint itself can refuse."""
    options = "-c session_replication_role=replica"
    with psycopg.connect(administrator_url, options=options) as connection:
        yield connection
        connection.rollback()


def insert(connection: psycopg.Connection, table: str, row: Row) -> None:
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(map(sql.Placeholder, row)),
    )
    connection.execute(statement, row)


def table_of(rule: str) -> str:
    return max((table for table in ROWS if table in rule), key=len)


@pytest.mark.parametrize("table", ROWS)
def test_a_lawful_row_is_taken(lawless: psycopg.Connection, table: str) -> None:
    insert(lawless, table, ROWS[table])


@pytest.mark.parametrize("end", [PAID, FAILED], ids=["paid", "failed"])
def test_a_lawful_end_is_taken(lawless: psycopg.Connection, end: Row) -> None:
    insert(lawless, "payments", {**ROWS["payments"], **end})


@pytest.mark.parametrize(("wrong", "rule"), ATTACKS)
def test_the_rule_refuses_the_row(lawless: psycopg.Connection, wrong: Row, rule: str) -> None:
    table = table_of(rule)
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        insert(lawless, table, {**ROWS[table], **wrong})
    assert refused.value.diag.constraint_name == rule


@pytest.mark.parametrize(("own", "rule"), COPIES)
def test_the_second_of_what_exists_once_is_refused(
    lawless: psycopg.Connection, own: Row, rule: str
) -> None:
    table = table_of(rule)
    insert(lawless, table, ROWS[table])
    with pytest.raises(psycopg.errors.UniqueViolation) as refused:
        insert(lawless, table, {**ROWS[table], **own})
    assert refused.value.diag.constraint_name == rule


@pytest.mark.parametrize(("table", "apart"), NEIGHBOURS)
def test_another_tenant_and_another_mode_are_another_world(
    lawless: psycopg.Connection, table: str, apart: Row
) -> None:
    insert(lawless, table, ROWS[table])
    insert(lawless, table, {**ROWS[table], **apart})


def test_external_ids_that_are_not_given_do_not_collide(lawless: psycopg.Connection) -> None:
    first = {**ROWS["payments"], "external_id": None}
    insert(lawless, "payments", first)
    insert(lawless, "payments", {**first, "id": UUID(int=50), "reference": UUID(int=60)})


def test_no_rule_of_the_schema_is_left_unattacked(lawless: psycopg.Connection) -> None:
    rules = lawless.execute(
        "SELECT conname FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'u')"
    ).fetchall()
    attacked = {rule for _, rule in [*ATTACKS, *COPIES]}
    assert {name for (name,) in rules} - attacked == set()
