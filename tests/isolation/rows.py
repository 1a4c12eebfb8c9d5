"""Rows in every table for two tenants, and SQL statements without a tenant in their WHERE."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID, uuid4

import psycopg
from flask import Flask
from psycopg import sql

from payments_app.kernel.database import transaction
from payments_app.kernel.secrets import Cipher
from payments_app.payments.callbacks import ReceivedCallback, record_callback
from payments_app.payments.model import InvariantViolation
from payments_app.providers.contract import Mode
from payments_app.tenants.accounts import NewAccount, set_account
from payments_app.tenants.model import Tenant
from payments_app.webhooks.deliveries import send_test
from payments_app.webhooks.endpoints import Owner
from tests.builders import (
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    a_tenant,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    keyring,
    payment_row,
    rails_of,
)
from tests.webhooks.dispatching import WorkerProcess, answered

# Alembic's own table: one row with the last migration.
NO_TENANTS = frozenset({"alembic_version"})
# Two partitions of a table, each of a week, may have rows with the same ctid.
PLACE = sql.SQL("tableoid::text || ctid::text")


def fill(app: Flask) -> Tenant:
    """A tenant with a row in every table. Add a new table's row here."""
    with app.app_context():
        tenant = a_tenant()
        account = NewAccount(
            provider="mtn_momo",
            mode=Mode.TEST,
            base_url="https://sandbox.example",
            target_environment="sandbox",
            credentials={"collection_api_key": "worth nothing"},
        )
        cipher: Cipher = app.extensions["maramoja"].cipher
        set_account(tenant, account, cipher=cipher, actor="cli:test")
        gateway = rails_of(app, ScriptedProvider())
        caller = a_caller(tenant=tenant)
        context = an_asker(caller=caller, key=uuid4())
        payment_id = an_accepted_payment(gateway, context=context).payment_id
        advance(gateway)
        reference = payment_row(payment_id).reference
        record_callback(ReceivedCallback(SCRIPTED, reference, "PUT", b"{}", None), keyring())
        # A new payment too: an INSERT of a copy of the other would be refused for its state.
        an_accepted_payment(gateway, context=an_asker(caller=caller))
        owner = Owner(tenant.id, caller.mode)
        send_test(owner, an_endpoint(owner).endpoint.id)
        # The attempt fails, so the delivery stays pending.
        process = WorkerProcess()
        process.record(answered(process.claim_one(), 503))
        with transaction(tenant.id) as session:
            session.add(
                InvariantViolation(
                    tenant_id=tenant.id, invariant="end_stands", subject="x", detail="x"
                )
            )
    return tenant


@dataclass(frozen=True)
class Forgetful:
    """SQL without a WHERE, as the application's role in a transaction of `tenant`.

    Each attack is rolled back. `administrator` is a superuser, who sees all rows.
    """

    connection: psycopg.Connection
    administrator: psycopg.Connection
    tenant: UUID | None

    def seen(self, table: str) -> set[str]:
        """The rows that SELECT shows, each by its table's id and its ctid."""
        with self.connection.transaction(force_rollback=True):
            self._enter()
            statement = sql.SQL("SELECT {} FROM {}").format(PLACE, sql.Identifier(table))
            return {place for (place,) in self.connection.execute(statement)}

    def reaches(self, verb: str, table: str, column: str, other: UUID) -> bool:
        """Whether an UPDATE or DELETE of the other tenant's rows matches one."""
        update = "UPDATE {t} SET {c} = {c} WHERE {c} = %s"
        statement = sql.SQL(update if verb == "update" else "DELETE FROM {t} WHERE {c} = %s")
        names = {"t": sql.Identifier(table), "c": sql.Identifier(column)}
        try:
            with self.connection.transaction(force_rollback=True):
                self._enter()
                return self.connection.execute(statement.format(**names), [other]).rowcount > 0
        except psycopg.errors.InsufficientPrivilege:
            return False
        except psycopg.errors.RestrictViolation:
            # A trigger stopped the statement, so it had reached the row.
            return True

    def refusal_of_planting(self, table: str, place: str) -> str:
        """The error on inserting a copy of the row at `place`, which is another tenant's."""
        copied = sql.SQL("SELECT to_jsonb(t) FROM {} t WHERE {} = %s").format(
            sql.Identifier(table), PLACE
        )
        found = self.administrator.execute(copied, [place]).fetchone()
        assert found is not None
        statement = sql.SQL(
            "INSERT INTO {0} OVERRIDING SYSTEM VALUE"
            " SELECT (jsonb_populate_record(NULL::{0}, %s)).*"
        ).format(sql.Identifier(table))
        return self._refusal(statement, [json.dumps(found[0])])

    def refusal_of_giving_away(self, table: str, column: str, other: UUID) -> str:
        """The error on changing the tenant of one's own rows to the other."""
        statement = sql.SQL("UPDATE {} SET {} = %s").format(
            sql.Identifier(table), sql.Identifier(column)
        )
        return self._refusal(statement, [other])

    def _refusal(self, statement: sql.Composed, values: list[object]) -> str:
        try:
            with self.connection.transaction(force_rollback=True):
                self._enter()
                self.connection.execute(statement, values)
        except psycopg.Error as error:
            return str(error.diag.message_primary)
        return ""

    def _enter(self) -> None:
        whose = "" if self.tenant is None else str(self.tenant)
        self.connection.execute("SELECT set_config('maramoja.tenant', %s, true)", [whose])
