"""The audit entries and the payment events are hash chains: each row has its SHA-256 and the previous row's.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'

FUNCTIONS = (
    "payment_event_is_chained()",
    "audit_entry_is_chained()",
    "payment_event_hash(payment_events)",
    "payment_hash(payments)",
    "audit_entry_hash(audit_entries)",
    "chain_time(timestamptz)",
    "chain_field(text)",
)
# The fields of a row's hash, in this order. docs/audit.md describes them for auditors, and
# payments_app/audit/chain.py and payments_app/payments/event_hashes.py compute the hash in Python.
HASHES = (
    # Each field has its length in characters before it, so that two lists of fields never give one text.
    """
    CREATE FUNCTION chain_field(value text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
        SELECT coalesce(char_length(value)::text || ':' || value, '-')
    $$
    """,
    """
    CREATE FUNCTION chain_time(value timestamptz) RETURNS text LANGUAGE sql IMMUTABLE AS $$
        SELECT trunc(extract(epoch FROM value) * 1000000)::text
    $$
    """,
    """
    CREATE FUNCTION audit_entry_hash(e audit_entries) RETURNS bytea LANGUAGE plpgsql STABLE AS $$
    BEGIN
        RETURN sha256(convert_to(
            chain_field('audit_entries') || chain_field(encode(e.previous_hash, 'hex'))
            || chain_field(e.tenant_id::text) || chain_field(e.position::text)
            || chain_field(e.id::text) || chain_field(e.actor) || chain_field(e.action)
            || chain_field(e.subject_type) || chain_field(e.subject_id) || chain_field(e.source)
            || chain_field(e.request_id) || chain_field(e.detail::text)
            || chain_field(chain_time(e.created_at)), 'UTF8'));
    END $$
    """,
    # The payment's order, which its first event is linked to. Without the payer, which can be erased.
    """
    CREATE FUNCTION payment_hash(p payments) RETURNS bytea LANGUAGE plpgsql STABLE AS $$
    BEGIN
        RETURN sha256(convert_to(
            chain_field('payments') || chain_field(p.id::text) || chain_field(p.tenant_id::text)
            || chain_field(p.mode) || chain_field(p.flow) || chain_field(p.provider)
            || chain_field(p.account_id::text) || chain_field(p.base_url)
            || chain_field(p.target_environment) || chain_field(p.merchant)
            || chain_field(p.reference::text) || chain_field(p.amount_minor::text)
            || chain_field(p.currency) || chain_field(chain_time(p.created_at)), 'UTF8'));
    END $$
    """,
    """
    CREATE FUNCTION payment_event_hash(e payment_events) RETURNS bytea
    LANGUAGE plpgsql STABLE AS $$
    BEGIN
        RETURN sha256(convert_to(
            chain_field('payment_events') || chain_field(encode(e.previous_hash, 'hex'))
            || chain_field(e.tenant_id::text) || chain_field(e.payment_id::text)
            || chain_field(e.sequence::text) || chain_field(e.id::text) || chain_field(e.type)
            || chain_field(e.status) || chain_field(e.stage) || chain_field(e.actor)
            || chain_field(e.request_id) || chain_field(e.data::text)
            || chain_field(e.transaction_id::text) || chain_field(chain_time(e.created_at)),
            'UTF8'));
    END $$
    """,
)
# Chains the existing rows, in their order of insertion.
CHAIN_OLD_ROWS = (
    "SELECT set_config('maramoja.tenant', '*', true)",
    "ALTER TABLE audit_entries DISABLE TRIGGER audit_entries_append_only",
    "ALTER TABLE payment_events DISABLE TRIGGER payment_events_append_only",
    """
    DO $$
    DECLARE
        entry audit_entries;
        before audit_entries;
    BEGIN
        FOR entry IN SELECT * FROM audit_entries ORDER BY tenant_id, id LOOP
            IF before.tenant_id IS DISTINCT FROM entry.tenant_id THEN
                before.position := 0;
                before.hash := decode(repeat('00', 32), 'hex');
            END IF;
            entry.position := before.position + 1;
            entry.previous_hash := before.hash;
            entry.hash := audit_entry_hash(entry);
            UPDATE audit_entries
            SET position = entry.position, previous_hash = entry.previous_hash, hash = entry.hash
            WHERE id = entry.id;
            before := entry;
        END LOOP;
    END $$
    """,
    """
    DO $$
    DECLARE
        event payment_events;
        before payment_events;
    BEGIN
        FOR event IN SELECT * FROM payment_events ORDER BY payment_id, sequence LOOP
            IF before.payment_id IS DISTINCT FROM event.payment_id THEN
                SELECT payment_hash(p) INTO before.hash FROM payments p WHERE id = event.payment_id;
            END IF;
            event.previous_hash := before.hash;
            event.hash := payment_event_hash(event);
            UPDATE payment_events SET previous_hash = event.previous_hash, hash = event.hash
            WHERE id = event.id;
            before := event;
        END LOOP;
    END $$
    """,
    "ALTER TABLE audit_entries ENABLE TRIGGER audit_entries_append_only",
    "ALTER TABLE payment_events ENABLE TRIGGER payment_events_append_only",
)
RULES = (
    # The database sets an entry's position, time and hashes. A tenant's entries are added one at a
    # time: the lock is held until the commit, so that no position is ever left out.
    """
    CREATE FUNCTION audit_entry_is_chained() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        head record;
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtextextended('audit_entries ' || NEW.tenant_id, 0));
        SELECT position, hash INTO head FROM audit_entries
        WHERE tenant_id = NEW.tenant_id ORDER BY position DESC LIMIT 1;
        NEW.position := coalesce(head.position, 0) + 1;
        NEW.previous_hash := coalesce(head.hash, decode(repeat('00', 32), 'hex'));
        NEW.created_at := clock_timestamp();
        NEW.hash := audit_entry_hash(NEW);
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER audit_entries_chained BEFORE INSERT ON audit_entries
    FOR EACH ROW EXECUTE FUNCTION audit_entry_is_chained()
    """,
    # No lock here: a transaction that adds an event has locked its payment's row.
    """
    CREATE FUNCTION payment_event_is_chained() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.sequence = 1 THEN
            SELECT payment_hash(p) INTO NEW.previous_hash FROM payments p
            WHERE id = NEW.payment_id;
        ELSE
            SELECT hash INTO NEW.previous_hash FROM payment_events
            WHERE payment_id = NEW.payment_id AND sequence = NEW.sequence - 1;
        END IF;
        IF NOT FOUND AND NEW.sequence > 0 THEN
            RAISE EXCEPTION 'event % has nothing before it to be linked to', NEW.sequence
                USING ERRCODE = 'restrict_violation';
        END IF;
        NEW.hash := payment_event_hash(NEW);
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER payment_events_chained BEFORE INSERT ON payment_events
    FOR EACH ROW EXECUTE FUNCTION payment_event_is_chained()
    """,
)


def upgrade() -> None:
    op.add_column('audit_entries', sa.Column('source', sa.Text(), nullable=True))
    op.add_column('audit_entries', sa.Column('position', sa.BigInteger(), nullable=True))
    for table in ("audit_entries", "payment_events"):
        op.add_column(table, sa.Column('previous_hash', sa.LargeBinary(), nullable=True))
        op.add_column(table, sa.Column('hash', sa.LargeBinary(), nullable=True))
    for statement in (*HASHES, *CHAIN_OLD_ROWS):
        op.execute(statement)
    op.alter_column('audit_entries', 'position', nullable=False)
    for table in ("audit_entries", "payment_events"):
        op.alter_column(table, 'previous_hash', nullable=False)
        op.alter_column(table, 'hash', nullable=False)
    op.create_unique_constraint(op.f('uq_audit_entries_tenant_id_position'), 'audit_entries', ['tenant_id', 'position'])
    op.drop_index(op.f('ix_audit_entries_tenant_id'), table_name='audit_entries')
    # Finds the last checkpoint, and all checkpoints in order, without a scan of the other entries.
    op.create_index('ix_audit_entries_seals', 'audit_entries', ['id'], unique=False, postgresql_where=sa.text("action = 'payment_events.sealed'"))
    for statement in RULES:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TRIGGER payment_events_chained ON payment_events")
    op.execute("DROP TRIGGER audit_entries_chained ON audit_entries")
    for function in FUNCTIONS:
        op.execute(f"DROP FUNCTION {function}")
    op.drop_index('ix_audit_entries_seals', table_name='audit_entries', postgresql_where=sa.text("action = 'payment_events.sealed'"))
    op.create_index(op.f('ix_audit_entries_tenant_id'), 'audit_entries', ['tenant_id'], unique=False)
    op.drop_constraint(op.f('uq_audit_entries_tenant_id_position'), 'audit_entries', type_='unique')
    for table in ("payment_events", "audit_entries"):
        op.drop_column(table, 'hash')
        op.drop_column(table, 'previous_hash')
    op.drop_column('audit_entries', 'position')
    op.drop_column('audit_entries', 'source')
