"""Plain SQL against the schema's rules, as an attacker who controls a database role."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from payments_app.commands.doctor.rights import MAY_CHANGE
from payments_app.payments.model import Payment

# For a test's own connection: row-level security shows it the rows of all tenants.
EVERY_ROW = "-c maramoja.tenant=*"


class Attacker:
    """Attacks over one connection; `role` is application or owner."""

    def __init__(self, connection: psycopg.Connection, role: str) -> None:
        self.connection = connection
        self.role = role

    def run(self, statement: str, **values: object) -> Any:
        return self.connection.execute(statement, values)

    def may_change(self, table: str, column: str) -> bool:
        """Whether the role may update the column; the owner may update all."""
        return self.role == "owner" or column in MAY_CHANGE.get(table, ())

    def refusal_of(self, attack: Callable[[], object]) -> str:
        """The error that refused the attack, or "" if it succeeded. Always rolled back."""
        try:
            with self.connection.transaction(force_rollback=True):
                attack()
        except psycopg.Error as error:
            return f"{type(error).__name__}: {error.diag.message_primary}"
        return ""

    def change(self, table: str, column: str, value: object, *, where: str = "true") -> None:
        """Set the column in every row. An attack that changes no row proves nothing."""
        statement = sql.SQL("UPDATE {} SET {} = {} WHERE {}").format(
            sql.Identifier(table),
            sql.Identifier(column),
            sql.Literal(value),
            sql.SQL(where),  # type: ignore[arg-type]  # a condition of the test's own
        )
        assert self.connection.execute(statement).rowcount > 0

    def evidence(self, payment: Payment, verdict: str | None) -> int:
        """Insert an exchange; without a verdict, one without an answer yet. Returns its id."""
        found = self.run(
            "INSERT INTO provider_exchanges"
            " (tenant_id, payment_id, generation, kind, reference, verdict, finished_at)"
            " SELECT tenant_id, id, 99, 'submit', reference, %(verdict)s,"
            " CASE WHEN %(verdict)s::text IS NULL THEN NULL ELSE now() END"
            " FROM payments WHERE id = %(id)s RETURNING id",
            id=payment.id,
            verdict=verdict,
        ).fetchone()
        return int(found[0])

    def exchange(
        self,
        payment: Payment,
        generation: int,
        kind: str,
        verdict: str | None,
        http_status: int | None,
    ) -> int:
        """Insert another exchange; without a verdict, one without an answer yet. Returns its id."""
        found = self.run(
            "INSERT INTO provider_exchanges"
            " (tenant_id, payment_id, generation, kind, reference, verdict, http_status, finished_at)"
            " SELECT tenant_id, id, %(generation)s, %(kind)s, reference, %(verdict)s, %(status)s,"
            " CASE WHEN %(verdict)s::text IS NULL THEN NULL ELSE now() END"
            " FROM payments WHERE id = %(id)s RETURNING id",
            id=payment.id,
            generation=generation,
            kind=kind,
            verdict=verdict,
            status=http_status,
        ).fetchone()
        return int(found[0])

    def end(
        self, payment: Payment, status: str, evidence: int | None, *, besides: str = ""
    ) -> None:
        """Set all columns of a final payment; `besides`: SQL to append to the statement."""
        statement = (
            "UPDATE payments SET status = %(status)s, stage = 'final', evidence_id = %(evidence)s,"
            " final_at = now(), next_action_at = NULL, lease_until = NULL,"
            " failure_code = CASE WHEN %(status)s = 'FAILED' THEN 'other' END WHERE id = %(id)s "
        )
        self.run(statement + besides, id=payment.id, status=status, evidence=evidence)

    def tell(self, payment: Payment, status: str) -> None:
        """Append an event to the payment."""
        self.run(
            "INSERT INTO events"
            " (tenant_id, mode, payment_id, sequence, type, status, stage, actor)"
            " SELECT tenant_id, mode, id, sequence + 1, 'payment.ended', %(status)s, 'final', 'attacker'"
            " FROM payments WHERE id = %(id)s",
            id=payment.id,
            status=status,
        )

    def copy(self, **own: object) -> None:
        """Insert a copy of the only payment, with other values in some columns."""
        row = self.connection.execute("SELECT to_jsonb(p) FROM payments p").fetchone()
        assert row is not None
        self.connection.execute(
            "INSERT INTO payments SELECT (jsonb_populate_record(NULL::payments, %s)).*",
            [json.dumps({**row[0], **own}, default=str)],
        )
