"""Payers are stored encrypted: their numbers, and all data that identifies them.

A payment's number and key are encrypted with its tenant's data key. The stored responses, the
provider's responses and the callbacks are encrypted with the payment's key. This migration encrypts
existing rows, with SECRET_KEYS, so stop the API and the workers for it:
docs/decisions/0018-payers-rest-sealed.md.

Revision ID: 0005
"""

import os

import sqlalchemy as sa
from alembic import op
from flask import current_app

from payments_app.kernel.encryption import KEY_BYTES, DataKey, unwrap, wrap
from payments_app.kernel.msisdn import Msisdn

revision = '0005'
down_revision = '0004'

# (table, trigger): the triggers that refuse changes of existing rows.
GUARDS = (
    ("payments", "payments_lawful"),
    ("callbacks", "callbacks_append_only"),
    ("provider_exchanges", "provider_exchanges_lawful"),
    ("idempotency_keys", "idempotency_keys_lawful"),
)
# What a payment's key encrypts: table, column that identifies the row, context, column with the payment.
BODIES = (
    ("provider_exchanges", "id", "'exchange ' || generation", "payment_id"),
    ("callbacks", "id", "'callback'", "payment_id"),
    ("idempotency_keys", "ctid", "'answer ' || key", "resource_id"),
)
# The order never changes. The payer may be erased only after the payment has ended, and completely.
LAWFUL = """
    CREATE OR REPLACE FUNCTION payment_change_is_lawful() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        forgotten boolean := OLD.status <> 'PENDING' AND {forgotten};
    BEGIN
        IF (OLD.id, OLD.tenant_id, OLD.mode, OLD.flow, OLD.provider, OLD.account_id,
            OLD.base_url, OLD.target_environment, OLD.merchant, OLD.reference, OLD.amount_minor,
            OLD.currency, OLD.created_at)
           IS DISTINCT FROM
           (NEW.id, NEW.tenant_id, NEW.mode, NEW.flow, NEW.provider, NEW.account_id,
            NEW.base_url, NEW.target_environment, NEW.merchant, NEW.reference, NEW.amount_minor,
            NEW.currency, NEW.created_at)
           OR (({old}) IS DISTINCT FROM ({new}) AND NOT forgotten) THEN
            RAISE EXCEPTION 'what a payment is for never changes'
                USING ERRCODE = 'restrict_violation';
        END IF;
        IF NEW.generation < OLD.generation OR NEW.sequence < OLD.sequence THEN
            RAISE EXCEPTION 'generation and sequence never go back'
                USING ERRCODE = 'restrict_violation';
        END IF;
        IF OLD.status <> 'PENDING' THEN
            IF to_jsonb(OLD) - {movable} <> to_jsonb(NEW) - {movable} THEN
                RAISE EXCEPTION 'a final payment never changes'
                    USING ERRCODE = 'restrict_violation';
            END IF;
        ELSIF NEW.status <> 'PENDING' THEN
            IF NOT EXISTS (
                SELECT FROM provider_exchanges
                WHERE id = NEW.evidence_id AND payment_id = NEW.id
                  AND finished_at IS NOT NULL
                  AND (verdict = NEW.status
                       OR (NEW.status = 'FAILED' AND verdict = 'REFUSED'))
            ) THEN
                RAISE EXCEPTION '% needs a stored answer of the provider that says so', NEW.status
                    USING ERRCODE = 'check_violation';
            END IF;
        END IF;
        RETURN NEW;
    END $$
"""
SEALED_LAW = LAWFUL.format(
    forgotten="num_nulls(NEW.payer, NEW.payer_index, NEW.payer_masked) = 3",
    old="OLD.payer, OLD.payer_index, OLD.payer_masked",
    new="NEW.payer, NEW.payer_index, NEW.payer_masked",
    movable="ARRAY['sequence', 'payer', 'payer_index', 'payer_masked']",
)
PLAIN_LAW = LAWFUL.format(
    forgotten="false", old="OLD.payer", new="NEW.payer", movable="ARRAY['sequence']"
)


def upgrade() -> None:
    op.add_column('tenants', sa.Column('data_key', sa.Text(), nullable=True))
    op.alter_column('payments', 'payer', new_column_name='payer_plain')
    op.add_column('payments', sa.Column('payer', sa.LargeBinary(), nullable=True))
    op.add_column('payments', sa.Column('payer_index', sa.LargeBinary(), nullable=True))
    op.add_column('payments', sa.Column('payer_masked', sa.Text(), nullable=True))
    _guard(on=False)
    for tenant_id, payment_id, digits in _rows("SELECT tenant_id, id, payer_plain FROM payments"):
        _seal(tenant_id, payment_id, digits)
    _guard(on=True)
    op.drop_index('ix_payments_payer', table_name='payments')
    op.drop_constraint(op.f('ck_payments_payer_form'), 'payments', type_='check')
    op.drop_column('payments', 'payer_plain')
    op.create_index('ix_payments_payer', 'payments', ['tenant_id', 'payer_index', sa.text('created_at DESC')], unique=False)
    op.create_index('ix_payments_remembered', 'payments', ['final_at'], unique=False, postgresql_where=sa.text('payer IS NOT NULL AND final_at IS NOT NULL'))
    op.create_check_constraint(op.f('ck_payments_open_has_payer'), 'payments', "status <> 'PENDING' OR payer IS NOT NULL")
    op.create_check_constraint(op.f('ck_payments_payer_goes_whole'), 'payments', "num_nulls(payer, payer_index, payer_masked) IN (0, 3)")
    op.execute(SEALED_LAW)


def downgrade() -> None:
    if op.get_bind().scalar(sa.text(
        "SELECT EXISTS (SELECT set_config('maramoja.tenant', '*', true), id FROM payments WHERE payer IS NULL)"
    )):
        raise RuntimeError("payers have been erased, and the schema before 0005 can't be without them")
    op.alter_column('payments', 'payer', new_column_name='payer_sealed')
    op.add_column('payments', sa.Column('payer', sa.Text(), nullable=True))
    op.drop_index('ix_payments_payer', table_name='payments')
    op.drop_index('ix_payments_remembered', table_name='payments', postgresql_where=sa.text('payer IS NOT NULL AND final_at IS NOT NULL'))
    op.drop_constraint(op.f('ck_payments_payer_goes_whole'), 'payments', type_='check')
    op.drop_constraint(op.f('ck_payments_open_has_payer'), 'payments', type_='check')
    _guard(on=False)
    for tenant_id, payment_id, sealed in _rows("SELECT tenant_id, id, payer_sealed FROM payments"):
        _unseal(tenant_id, payment_id, sealed)
    _guard(on=True)
    for column in ('payer_sealed', 'payer_index', 'payer_masked'):
        op.drop_column('payments', column)
    op.drop_column('tenants', 'data_key')
    op.alter_column('payments', 'payer', nullable=False)
    op.create_index('ix_payments_payer', 'payments', ['tenant_id', 'payer', sa.text('created_at DESC')], unique=False)
    op.create_check_constraint(op.f('ck_payments_payer_form'), 'payments', "payer ~ '^[1-9][0-9]{7,14}$'")
    op.execute(PLAIN_LAW)


def _seal(tenant_id, payment_id, digits) -> None:
    tenant, key = DataKey(_data_key(tenant_id)), os.urandom(KEY_BYTES)
    _execute(
        "UPDATE payments SET payer = :payer, payer_index = :index, payer_masked = :masked WHERE id = :id",
        payer=tenant.encrypt(key + digits.encode(), about=f"payer {payment_id}"),
        index=tenant.digest(digits.encode(), about="payer"),
        masked=Msisdn(digits).masked,
        id=payment_id,
    )
    data_key = DataKey(key)
    _change_bodies(payment_id, lambda body, about: data_key.encrypt(body, about=about))
    for callback_id, body in _rows("SELECT id, body FROM callbacks WHERE payment_id = :id", id=payment_id):
        plain = data_key.decrypt(body, about="callback")
        _execute("UPDATE callbacks SET digest = :digest WHERE id = :id", digest=data_key.digest(plain, about="callback"), id=callback_id)


def _unseal(tenant_id, payment_id, sealed) -> None:
    plain = DataKey(_data_key(tenant_id)).decrypt(sealed, about=f"payer {payment_id}")
    _execute("UPDATE payments SET payer = :payer WHERE id = :id", payer=plain[KEY_BYTES:].decode(), id=payment_id)
    data_key = DataKey(plain[:KEY_BYTES])
    _change_bodies(payment_id, lambda body, about: data_key.decrypt(body, about=about))
    _execute("UPDATE callbacks SET digest = sha256(body) WHERE payment_id = :id", id=payment_id)


def _change_bodies(payment_id, change) -> None:
    for table, name, about, owner in BODIES:
        found = _rows(
            f"SELECT {name}::text, {about}, body FROM {table} WHERE {owner} = :id AND body <> ''", id=payment_id
        )
        for row, subject, body in found:
            _execute(f"UPDATE {table} SET body = :body WHERE {name}::text = :row", body=change(body, subject), row=row)


def _data_key(tenant_id) -> bytes:
    cipher = current_app.extensions["maramoja"].cipher
    wrapped = op.get_bind().scalar(sa.text("SELECT data_key FROM tenants WHERE id = :id"), {"id": tenant_id})
    if wrapped is None:
        wrapped = wrap(cipher, tenant_id, os.urandom(KEY_BYTES))
        _execute("UPDATE tenants SET data_key = :key WHERE id = :id", key=wrapped, id=tenant_id)
    return unwrap(cipher, tenant_id, wrapped)


def _guard(*, on: bool) -> None:
    _execute("SELECT set_config('maramoja.tenant', '*', true)")
    for table, trigger in GUARDS:
        op.execute(f"ALTER TABLE {table} {'ENABLE' if on else 'DISABLE'} TRIGGER {trigger}")


def _rows(statement, **values):
    return op.get_bind().execute(sa.text(statement), values).all()


def _execute(statement, **values) -> None:
    op.get_bind().execute(sa.text(statement), values)
