"""What the database refuses to both roles: attacks in plain SQL, as the application and the owner.

These are the rules of triggers, keys and grants; test_schema_checks.py has the CHECKs and UNIQUEs.
"""

from __future__ import annotations

from functools import partial
from typing import Final
from uuid import UUID

import psycopg
import pytest
from flask import Flask
from psycopg.errors import (
    CheckViolation,
    ForeignKeyViolation,
    InsufficientPrivilege,
    NotNullViolation,
    RestrictViolation,
)

from payments_app.payments.model import Payment
from tests.builders import ScriptedProvider, a_tenant, an_accepted_payment, payment_row, rails_of
from tests.storage.attacker import EVERY_ROW, Attacker

AN_ID: Final = UUID("01a209ad-4164-7047-9850-453984927403")
LONG_AGO: Final = "2020-01-01T00:00:00Z"
APPEND_ONLY: Final = ("events", "audit_entries", "callbacks")
# Deliveries and their attempts: deleted a month after the delivery ended.
FORGOTTEN_IN_TIME = ("webhook_deliveries", "webhook_attempts")
NEVER_REMOVED: Final = (*APPEND_ONLY, "payments", "provider_exchanges", "idempotency_keys")
# The columns of the request, each with another value.
ASKED: Final[dict[str, object]] = {
    "id": AN_ID,
    "tenant_id": AN_ID,
    "mode": "test",
    "flow": "payout",
    "provider": "airtel_money",
    "account_id": AN_ID,
    "base_url": "https://thief.example",
    "target_environment": "mtncongo",
    "merchant": "another",
    "reference": AN_ID,
    "amount_minor": 1,
    "currency": "UGX",
    "payer": b"another",
    "payer_index": b"another",
    "payer_masked": "another",
    "created_at": LONG_AGO,
}
# Columns that may change while a payment is open, but not once it is final.
MOVING: Final[dict[str, object]] = {
    "status": "SUCCESSFUL",
    "stage": "unknown",
    "failure_code": "payer_not_found",
    "failure_provider_code": "OTHER",
    "provider_transaction_id": "1",
    "evidence_id": None,
    "next_step": "submit",
    "next_action_at": LONG_AGO,
    "lease_until": LONG_AGO,
    "generation": 99,
    "submissions": 99,
    "submitted_at": LONG_AGO,
    "updated_at": LONG_AGO,
    "final_at": None,
    "external_id": "another",
    "payer_message": "another",
    "payee_note": "another",
    "description": "another",
    "metadata": "{}",
}
CLOSED_EVIDENCE: Final[dict[str, object]] = {
    "verdict": "SUCCESSFUL",
    "reason": "another",
    "http_status": 299,
    "body": b"another",
    "failure_code": "other",
    "failure_provider_code": "another",
    "elapsed_ms": -1,
    "requests_left": 0,
    "finished_at": LONG_AGO,
    "started_at": LONG_AGO,
    "payment_id": AN_ID,
}
OPEN_SUBMISSION: Final[dict[str, object]] = {
    "tenant_id": AN_ID,
    "payment_id": AN_ID,
    "generation": 77,
    "kind": "check",
    "reference": AN_ID,
}
KEY: Final[dict[str, object]] = {
    "tenant_id": AN_ID,
    "mode": "test",
    "key": AN_ID,
    "fingerprint": b"f" * 32,
    "fingerprint_version": 9,
    "resource_id": AN_ID,
    "status": 200,
    "body": b"another answer",
}
NO_PROOF: Final = [
    *(("SUCCESSFUL", v) for v in ("FAILED", "REFUSED", "PENDING", "DUPLICATE", "UNKNOWN", None)),
    *(("FAILED", v) for v in ("SUCCESSFUL", "PENDING", "NOT_FOUND", "UNKNOWN", "NOT_SENT", None)),
    ("DONE", "SUCCESSFUL"),
]


def not_refused(
    attacker: Attacker, table: str, values: dict[str, object], refusal: str
) -> dict[str, str]:
    """The columns that could be changed, or whose change another rule refused.

    Where our role has no right to the column, PostgreSQL refuses before the rule is checked.
    """
    said = {
        column: attacker.refusal_of(lambda c=column, v=value: attacker.change(table, c, v))
        for column, value in values.items()
    }
    return {
        column: words
        for column, words in said.items()
        if (refusal if attacker.may_change(table, column) else "permission denied") not in words
    }


def removal_refusal(attacker: Attacker) -> type[psycopg.Error]:
    return InsufficientPrivilege if attacker.role == "application" else RestrictViolation


# --- columns of the request ---------------------------------------------------------------------


@pytest.mark.usefixtures("open_payment")
def test_what_a_payment_is_for_never_changes(attacker: Attacker) -> None:
    assert not_refused(attacker, "payments", ASKED, "what a payment is for never changes") == {}


def test_the_counters_of_an_open_payment_never_go_back(
    attacker: Attacker, open_payment: Payment
) -> None:
    back = {"generation": open_payment.generation - 1, "sequence": open_payment.sequence - 1}
    assert not_refused(attacker, "payments", back, "generation and sequence never go back") == {}


# --- insertion and end --------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["SUCCESSFUL", "FAILED", "DONE"])
@pytest.mark.usefixtures("failed_payment")
def test_no_payment_is_born_with_an_end(attacker: Attacker, status: str) -> None:
    with pytest.raises(CheckViolation, match="a payment begins PENDING"):
        attacker.copy(id=AN_ID, reference=AN_ID, status=status)


@pytest.mark.usefixtures("open_payment")
def test_no_payment_is_born_without_the_first_line_of_its_story(attacker: Attacker) -> None:
    attacker.copy(id=AN_ID, reference=AN_ID)
    with pytest.raises(RestrictViolation, match="needs its event"):
        attacker.connection.commit()


@pytest.mark.parametrize(("status", "verdict"), NO_PROOF)
def test_an_end_needs_a_stored_answer_that_says_so(
    attacker: Attacker, open_payment: Payment, status: str, verdict: str | None
) -> None:
    evidence = attacker.evidence(open_payment, verdict)
    attacker.tell(open_payment, status)
    with pytest.raises(CheckViolation, match="needs a stored answer"):
        attacker.end(open_payment, status, evidence)


@pytest.mark.parametrize("evidence", [None, -1])
def test_an_end_needs_evidence_at_all(
    attacker: Attacker, open_payment: Payment, evidence: int | None
) -> None:
    attacker.tell(open_payment, "FAILED")
    with pytest.raises(CheckViolation, match="needs a stored answer"):
        attacker.end(open_payment, "FAILED", evidence)


def test_another_payments_evidence_proves_nothing(
    attacker: Attacker, failed_payment: Payment, open_payment: Payment
) -> None:
    attacker.tell(open_payment, "FAILED")
    with pytest.raises(CheckViolation, match="needs a stored answer"):
        attacker.end(open_payment, "FAILED", failed_payment.evidence_id)


@pytest.mark.parametrize(
    ("status", "verdict"), [("SUCCESSFUL", "SUCCESSFUL"), ("FAILED", "FAILED")]
)
def test_with_evidence_and_its_line_a_payment_ends(
    attacker: Attacker, open_payment: Payment, status: str, verdict: str
) -> None:
    answer = attacker.exchange(open_payment, 99, "check", verdict, 200)
    attacker.end(open_payment, status, answer)
    attacker.tell(open_payment, status)
    attacker.connection.commit()
    assert payment_row(open_payment.id).status == status


@pytest.fixture
def unsent_payment(app: Flask) -> Payment:
    """A payment that was never submitted."""
    accepted = an_accepted_payment(rails_of(app, ScriptedProvider()))
    return payment_row(accepted.payment_id)


@pytest.mark.parametrize(
    ("kind", "verdict", "http_status", "stands"),
    [
        (None, None, None, True),
        ("submit", "NOT_SENT", None, True),
        ("submit", "NOT_SENT", 429, False),
        ("submit", "UNKNOWN", None, False),
        ("submit", "PENDING", 202, False),
        ("submit", None, None, False),
        ("check", "NOT_FOUND", 404, True),
        ("check", "UNKNOWN", 500, True),
    ],
)
def test_a_refusal_ends_a_payment_only_if_its_request_is_the_only_one_that_left(
    attacker: Attacker,
    unsent_payment: Payment,
    kind: str | None,
    verdict: str | None,
    http_status: int | None,
    *,
    stands: bool,
) -> None:
    refusal = attacker.evidence(unsent_payment, "REFUSED")
    if kind is not None:
        attacker.exchange(unsent_payment, 98, kind, verdict, http_status)
    attacker.tell(unsent_payment, "FAILED")
    if stands:
        attacker.end(unsent_payment, "FAILED", refusal)
        attacker.connection.commit()
        assert payment_row(unsent_payment.id).status == "FAILED"
    else:
        with pytest.raises(CheckViolation, match="another request of this payment"):
            attacker.end(unsent_payment, "FAILED", refusal)


@pytest.mark.parametrize(("generation", "stands"), [(97, False), (100, True)])
def test_a_not_found_after_the_last_submission_lets_a_refusal_stand(
    attacker: Attacker, unsent_payment: Payment, generation: int, *, stands: bool
) -> None:
    refusal = attacker.evidence(unsent_payment, "REFUSED")
    attacker.exchange(unsent_payment, 98, "submit", "UNKNOWN", None)
    attacker.exchange(unsent_payment, generation, "check", "NOT_FOUND", 404)
    attacker.tell(unsent_payment, "FAILED")
    refused = attacker.refusal_of(lambda: attacker.end(unsent_payment, "FAILED", refusal))
    assert ("another request" not in refused) is stands


def test_a_refusal_of_a_question_ends_nothing(attacker: Attacker, unsent_payment: Payment) -> None:
    refusal = attacker.exchange(unsent_payment, 99, "check", "REFUSED", 403)
    attacker.tell(unsent_payment, "FAILED")
    with pytest.raises(CheckViolation, match="another request of this payment"):
        attacker.end(unsent_payment, "FAILED", refusal)


@pytest.mark.parametrize(
    "besides",
    [
        "RETURNING set_config('maramoja.tenant', '', false)",
        "RETURNING set_config('maramoja.tenant', gen_random_uuid()::text, false)",
    ],
)
def test_a_statement_that_hides_the_evidence_from_the_rule_ends_nothing(
    attacker: Attacker, unsent_payment: Payment, besides: str
) -> None:
    refusal = attacker.evidence(unsent_payment, "REFUSED")
    attacker.exchange(unsent_payment, 98, "submit", "PENDING", 202)
    attacker.tell(unsent_payment, "FAILED")

    attack = partial(attacker.end, unsent_payment, "FAILED", refusal, besides=besides)

    assert attacker.refusal_of(attack) != ""


@pytest.mark.parametrize("told", ["never", "another_end", "another_payment", "too_early"])
def test_an_end_without_its_line_in_the_same_transaction_is_refused(
    attacker: Attacker, failed_payment: Payment, open_payment: Payment, told: str
) -> None:
    if told == "too_early":
        attacker.tell(open_payment, "SUCCESSFUL")
        attacker.connection.commit()
    attacker.end(open_payment, "SUCCESSFUL", attacker.evidence(open_payment, "SUCCESSFUL"))
    if told == "another_end":
        attacker.tell(open_payment, "FAILED")
    if told == "another_payment":
        attacker.tell(failed_payment, "SUCCESSFUL")
    with pytest.raises(RestrictViolation, match="needs its event"):
        attacker.connection.commit()
    assert payment_row(open_payment.id).status == "PENDING"


@pytest.mark.usefixtures("failed_payment")
def test_nothing_of_a_final_payment_changes(attacker: Attacker) -> None:
    assert not_refused(attacker, "payments", MOVING, "a final payment never changes") == {}


@pytest.mark.parametrize("status", ["PENDING", "SUCCESSFUL"])
def test_a_final_payment_is_not_left_even_with_evidence(
    attacker: Attacker, failed_payment: Payment, status: str
) -> None:
    evidence = attacker.evidence(failed_payment, status)
    attacker.tell(failed_payment, status)
    with pytest.raises(RestrictViolation, match="a final payment never changes"):
        attacker.end(failed_payment, status, evidence)


def test_a_final_payment_still_counts_the_lines_of_its_story(
    attacker: Attacker, failed_payment: Payment
) -> None:
    attacker.change("payments", "sequence", failed_payment.sequence + 1)
    attacker.connection.commit()
    back = {"sequence": failed_payment.sequence}
    assert not_refused(attacker, "payments", back, "generation and sequence never go back") == {}


# --- what is never removed ----------------------------------------------------------------------


@pytest.mark.parametrize("table", NEVER_REMOVED)
@pytest.mark.usefixtures("open_payment")
def test_rows_are_never_removed(attacker: Attacker, table: str) -> None:
    assert attacker.run(f"SELECT count(*) > 0 FROM {table}").fetchone() == (True,)  # noqa: S608
    for attack in (f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):  # noqa: S608
        with pytest.raises(removal_refusal(attacker)), attacker.connection.transaction():
            attacker.run(attack)


@pytest.mark.usefixtures("open_payment")
def test_emptying_a_table_that_others_hang_on_is_refused_too(attacker: Attacker) -> None:
    with pytest.raises(removal_refusal(attacker)):
        attacker.run("TRUNCATE tenants CASCADE")


@pytest.mark.usefixtures("open_payment")
def test_a_tenant_with_anything_to_its_name_stays(attacker: Attacker) -> None:
    with pytest.raises((InsufficientPrivilege, ForeignKeyViolation)):
        attacker.run("DELETE FROM tenants")


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.usefixtures("open_payment")
def test_what_was_told_is_never_told_otherwise(attacker: Attacker, table: str) -> None:
    with pytest.raises(removal_refusal(attacker)):
        attacker.change(table, "tenant_id", AN_ID)


@pytest.mark.usefixtures("failed_payment")
def test_evidence_that_is_closed_never_changes(attacker: Attacker) -> None:
    said = not_refused(attacker, "provider_exchanges", CLOSED_EVIDENCE, "evidence never changes")
    assert said == {}


def test_an_open_submission_stays_that_of_its_payment_and_claim(
    attacker: Attacker, open_payment: Payment
) -> None:
    exchange = attacker.evidence(open_payment, None)
    for column, value in OPEN_SUBMISSION.items():
        may = attacker.may_change("provider_exchanges", column)
        with (
            pytest.raises(
                RestrictViolation if may else InsufficientPrivilege,
                match="evidence never changes" if may else "permission denied",
            ),
            attacker.connection.transaction(),
        ):
            attacker.change("provider_exchanges", column, value, where=f"id = {exchange}")


def test_an_open_submission_is_closed_once(attacker: Attacker, open_payment: Payment) -> None:
    exchange = attacker.evidence(open_payment, None)
    closing = "UPDATE provider_exchanges SET verdict = %(v)s, finished_at = now() WHERE id = %(i)s"
    attacker.run(closing, v="UNKNOWN", i=exchange)
    with pytest.raises(RestrictViolation, match="evidence never changes"):
        attacker.run(closing, v="SUCCESSFUL", i=exchange)


@pytest.mark.usefixtures("open_payment")
def test_an_idempotency_key_never_stands_for_anything_else(attacker: Attacker) -> None:
    assert (
        not_refused(attacker, "idempotency_keys", KEY, "what an idempotency key stands for") == {}
    )


@pytest.mark.usefixtures("open_payment")
def test_an_answer_can_be_forgotten_and_is_not_made_up_again(attacker: Attacker) -> None:
    attacker.change("idempotency_keys", "body", None)
    with pytest.raises(RestrictViolation, match="what an idempotency key stands for"):
        attacker.change("idempotency_keys", "body", b"made up")


# --- tenant isolation and grants ------------------------------------------------------------------


def test_every_table_carries_the_tenant_and_cannot_do_without(attacker: Attacker) -> None:
    walled = attacker.run(
        "SELECT t.table_name, c.is_nullable FROM information_schema.tables t"
        " LEFT JOIN information_schema.columns c ON c.table_schema = t.table_schema"
        "  AND c.table_name = t.table_name AND c.column_name = 'tenant_id'"
        " WHERE t.table_schema = 'public' AND t.table_type = 'BASE TABLE'"
        "  AND t.table_name NOT IN ('tenants', 'alembic_version')"
    ).fetchall()
    assert len(walled) >= 8
    assert [table for table, nullable in walled if nullable != "NO"] == []


def test_every_tenant_id_is_that_of_a_tenant(attacker: Attacker) -> None:
    loose = attacker.run(
        "SELECT a.attrelid::regclass::text FROM pg_attribute a"
        " JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')"
        " WHERE c.relnamespace = 'public'::regnamespace AND a.attname = 'tenant_id'"
        "  AND NOT EXISTS (SELECT FROM pg_constraint f WHERE f.contype = 'f'"
        "   AND f.conrelid = a.attrelid AND f.confrelid = 'tenants'::regclass"
        "   AND a.attnum = ANY (f.conkey))"
    ).fetchall()
    assert loose == []


def test_a_row_of_nobody_or_of_a_stranger_is_refused(
    attacker: Attacker, open_payment: Payment
) -> None:
    insert = (
        "INSERT INTO callbacks (tenant_id, payment_id, digest, method, body)"
        " VALUES (%(tenant)s, %(payment)s, 'd', 'POST', 'b')"
    )
    for tenant, payment, refusal in (
        (None, open_payment.id, NotNullViolation),
        (AN_ID, open_payment.id, ForeignKeyViolation),
        (a_tenant().id, AN_ID, ForeignKeyViolation),
    ):
        with pytest.raises(refusal), attacker.connection.transaction():
            attacker.run(insert, tenant=tenant, payment=payment)


def test_all_triggers_are_on(attacker: Attacker) -> None:
    triggers = attacker.run(
        "SELECT tgname, tgenabled::text FROM pg_trigger WHERE NOT tgisinternal"
    ).fetchall()
    assert len(triggers) >= 15
    assert [name for name, state in triggers if state not in ("O", "A")] == []


def test_the_application_owns_nothing_and_cannot_remove_anything(database_url: str) -> None:
    with psycopg.connect(database_url, options=EVERY_ROW) as connection:
        mighty = connection.execute(
            "SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb"
            "  OR has_schema_privilege('public', 'CREATE')"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        granted = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            "  AND relkind IN ('r', 'p') AND relname <> 'alembic_version'"
            "  AND (has_table_privilege(oid, 'TRUNCATE, TRIGGER')"
            "   OR has_table_privilege(oid, 'DELETE') AND NOT relname = ANY (%s)"
            "   OR relowner = current_user::regrole"
            "   OR has_table_privilege(oid, 'UPDATE') AND relname = ANY (%s))",
            [list(FORGOTTEN_IN_TIME), list(APPEND_ONLY)],
        ).fetchall()
    assert mighty == (False,)
    assert granted == []


@pytest.mark.parametrize(
    "attack",
    [
        "SET session_replication_role = replica",
        "ALTER TABLE payments DISABLE TRIGGER ALL",
        "DROP TRIGGER payments_lawful ON payments",
        "DROP TABLE payments CASCADE",
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE sql AS ''",
    ],
)
def test_the_application_cannot_switch_the_rules_off(database_url: str, attack: str) -> None:
    with (
        psycopg.connect(database_url, options=EVERY_ROW) as connection,
        pytest.raises(InsufficientPrivilege),
    ):
        connection.execute(attack)
