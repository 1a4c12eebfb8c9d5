"""An Idempotency-Key can belong to any change over HTTP, not only to a payment.

`resource_id` stays the payment's id. A key of any other change has null there, and the address of the
changed resource in a new column, `resource_path`. Older code writes payments only. If a payment uses
a key of another change, it answers 500, where this version answers that the key was used. It also keeps
the responses of such keys longer. Both do no harm.

Revision ID: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = '0011'
down_revision = '0010'

STAYS = """
    CREATE OR REPLACE FUNCTION idempotency_key_stays() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (OLD.tenant_id, OLD.mode, OLD.key, OLD.fingerprint, OLD.fingerprint_version,
            OLD.resource_id, {old}OLD.status)
           IS DISTINCT FROM
           (NEW.tenant_id, NEW.mode, NEW.key, NEW.fingerprint, NEW.fingerprint_version,
            NEW.resource_id, {new}NEW.status)
           OR (NEW.body IS NOT NULL AND NEW.body IS DISTINCT FROM OLD.body) THEN
            RAISE EXCEPTION 'what an idempotency key stands for never changes'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
"""


def upgrade() -> None:
    op.add_column('idempotency_keys', sa.Column('resource_path', sa.Text(), nullable=True))
    op.alter_column('idempotency_keys', 'resource_id', nullable=True)
    # NOT VALID adds it without a scan; VALIDATE then reads the existing rows.
    op.execute(
        "ALTER TABLE idempotency_keys ADD CONSTRAINT ck_idempotency_keys_stands_for_one_thing"
        " CHECK (num_nonnulls(resource_id, resource_path) = 1) NOT VALID"
    )
    op.execute(
        "ALTER TABLE idempotency_keys VALIDATE CONSTRAINT ck_idempotency_keys_stands_for_one_thing"
    )
    op.execute(STAYS.format(old="OLD.resource_path, ", new="NEW.resource_path, "))


def downgrade() -> None:
    # Older code cannot use keys of other changes.
    op.execute("SELECT set_config('maramoja.tenant', '*', true)")
    op.execute("ALTER TABLE idempotency_keys DISABLE TRIGGER idempotency_keys_never_removed")
    op.execute("DELETE FROM idempotency_keys WHERE resource_id IS NULL")
    op.execute("ALTER TABLE idempotency_keys ENABLE TRIGGER idempotency_keys_never_removed")
    op.execute(STAYS.format(old="", new=""))
    op.drop_constraint(op.f('ck_idempotency_keys_stands_for_one_thing'), 'idempotency_keys', type_='check')
    op.drop_column('idempotency_keys', 'resource_path')
    op.alter_column('idempotency_keys', 'resource_id', nullable=False)
