"""Webhooks: endpoints, events, deliveries, attempts.

A payment's event inserts its webhook event in the same transaction, by a trigger.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0006'
down_revision = '0005'

TABLES = ("webhook_endpoints", "webhook_events", "webhook_deliveries", "webhook_attempts")
RULES = (
    """
    CREATE FUNCTION payment_event_is_news() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO webhook_events (tenant_id, mode, type, payment_id, sequence, created_at)
        SELECT NEW.tenant_id, p.mode, NEW.type, NEW.payment_id, NEW.sequence, NEW.created_at
        FROM payments p WHERE p.id = NEW.payment_id;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER payment_events_are_news AFTER INSERT ON payment_events
    FOR EACH ROW EXECUTE FUNCTION payment_event_is_news()
    """,
    # An event is published once and never changes: its bytes are those of all its webhooks.
    """
    CREATE FUNCTION webhook_event_change_is_lawful() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.data IS NOT NULL OR
           (OLD.number, OLD.id, OLD.tenant_id, OLD.mode, OLD.type, OLD.payment_id, OLD.sequence,
            OLD.created_at)
           IS DISTINCT FROM
           (NEW.number, NEW.id, NEW.tenant_id, NEW.mode, NEW.type, NEW.payment_id, NEW.sequence,
            NEW.created_at) THEN
            RAISE EXCEPTION 'an event is published once and never changes'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER webhook_events_lawful BEFORE UPDATE ON webhook_events
    FOR EACH ROW EXECUTE FUNCTION webhook_event_change_is_lawful()
    """,
    # A delivery's body never changes, so that one id never has two bodies.
    """
    CREATE FUNCTION webhook_delivery_change_is_lawful() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (OLD.id, OLD.tenant_id, OLD.mode, OLD.endpoint_id, OLD.event_number, OLD.payment_id,
            OLD.sequence, OLD.body, OLD.created_at)
           IS DISTINCT FROM
           (NEW.id, NEW.tenant_id, NEW.mode, NEW.endpoint_id, NEW.event_number, NEW.payment_id,
            NEW.sequence, NEW.body, NEW.created_at) OR NEW.generation < OLD.generation THEN
            RAISE EXCEPTION 'what a delivery says never changes'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER webhook_deliveries_lawful BEFORE UPDATE ON webhook_deliveries
    FOR EACH ROW EXECUTE FUNCTION webhook_delivery_change_is_lawful()
    """,
    """
    CREATE FUNCTION webhook_attempt_change_is_lawful() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.finished_at IS NOT NULL THEN
            RAISE EXCEPTION 'a closed attempt never changes' USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER webhook_attempts_lawful BEFORE UPDATE ON webhook_attempts
    FOR EACH ROW EXECUTE FUNCTION webhook_attempt_change_is_lawful()
    """,
)


def upgrade() -> None:
    op.create_table('webhook_endpoints',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('mode', sa.Text(), nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('description', sa.Text(), server_default='', nullable=False),
    sa.Column('event_types', postgresql.ARRAY(sa.Text()), nullable=False),
    sa.Column('secret', sa.Text(), nullable=True),
    sa.Column('previous_secret', sa.Text(), nullable=True),
    sa.Column('previous_secret_until', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('status', sa.Text(), server_default='enabled', nullable=False),
    sa.Column('disabled_reason', sa.Text(), nullable=True),
    sa.Column('disabled_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('failing_since', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('warned_days', sa.Integer(), server_default='0', nullable=False),
    sa.Column('timeouts', sa.Integer(), server_default='0', nullable=False),
    sa.Column('served_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('deleted_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("(status = 'disabled') = (disabled_at IS NOT NULL)", name=op.f('ck_webhook_endpoints_disabled_has_time')),
    sa.CheckConstraint("deleted_at IS NULL OR status = 'disabled'", name=op.f('ck_webhook_endpoints_removed_is_disabled')),
    sa.CheckConstraint("mode IN ('live', 'test')", name=op.f('ck_webhook_endpoints_mode_known')),
    sa.CheckConstraint("status IN ('enabled', 'disabled')", name=op.f('ck_webhook_endpoints_status_known')),
    sa.CheckConstraint('(deleted_at IS NULL) = (secret IS NOT NULL)', name=op.f('ck_webhook_endpoints_secret_goes_with_it')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_webhook_endpoints_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_webhook_endpoints'))
    )
    op.create_index('ix_webhook_endpoints_tenant', 'webhook_endpoints', ['tenant_id', 'mode', 'created_at'], unique=False)
    op.create_index('ix_webhook_endpoints_turn', 'webhook_endpoints', [sa.literal_column('served_at NULLS FIRST')], unique=False, postgresql_where=sa.text("status = 'enabled'"))
    op.create_table('webhook_events',
    sa.Column('number', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('id', sa.Uuid(), server_default=sa.text('gen_random_uuid()'), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('mode', sa.Text(), nullable=False),
    sa.Column('type', sa.Text(), nullable=False),
    sa.Column('payment_id', sa.Uuid(), nullable=True),
    sa.Column('sequence', sa.Integer(), nullable=True),
    sa.Column('position', sa.BigInteger(), nullable=True),
    sa.Column('data', sa.LargeBinary(), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint('position IS NULL OR data IS NOT NULL', name=op.f('ck_webhook_events_published_is_whole')),
    sa.ForeignKeyConstraint(['payment_id'], ['payments.id'], name=op.f('fk_webhook_events_payment_id_payments')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_webhook_events_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('number', name=op.f('pk_webhook_events')),
    sa.UniqueConstraint('id', name=op.f('uq_webhook_events_id')),
    sa.UniqueConstraint('payment_id', 'sequence', name=op.f('uq_webhook_events_payment_id_sequence')),
    sa.UniqueConstraint('tenant_id', 'mode', 'position', name=op.f('uq_webhook_events_tenant_id_mode_position'))
    )
    op.create_index('ix_webhook_events_new', 'webhook_events', ['number'], unique=False, postgresql_where=sa.text('data IS NULL'))
    op.create_index('ix_webhook_events_time', 'webhook_events', ['tenant_id', 'mode', 'created_at'], unique=False)
    op.create_table('webhook_deliveries',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('mode', sa.Text(), nullable=False),
    sa.Column('endpoint_id', sa.Uuid(), nullable=False),
    sa.Column('event_number', sa.BigInteger(), nullable=False),
    sa.Column('event_type', sa.Text(), nullable=False),
    sa.Column('payment_id', sa.Uuid(), nullable=True),
    sa.Column('sequence', sa.Integer(), nullable=True),
    sa.Column('body', sa.LargeBinary(), nullable=False),
    sa.Column('status', sa.Text(), server_default='pending', nullable=False),
    sa.Column('trigger', sa.Text(), server_default='schedule', nullable=False),
    sa.Column('attempts', sa.Integer(), server_default='0', nullable=False),
    sa.Column('next_attempt_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('lease_until', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('generation', sa.Integer(), server_default='0', nullable=False),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('delivered_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("(status = 'delivered') = (delivered_at IS NOT NULL)", name=op.f('ck_webhook_deliveries_has_time')),
    sa.CheckConstraint("status IN ('pending', 'delivered', 'failed')", name=op.f('ck_webhook_deliveries_status_known')),
    sa.ForeignKeyConstraint(['endpoint_id'], ['webhook_endpoints.id'], name=op.f('fk_webhook_deliveries_endpoint_id_webhook_endpoints')),
    sa.ForeignKeyConstraint(['event_number'], ['webhook_events.number'], name=op.f('fk_webhook_deliveries_event_number_webhook_events')),
    sa.ForeignKeyConstraint(['payment_id'], ['payments.id'], name=op.f('fk_webhook_deliveries_payment_id_payments')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_webhook_deliveries_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_webhook_deliveries')),
    sa.UniqueConstraint('event_number', 'endpoint_id', name=op.f('uq_webhook_deliveries_event_number_endpoint_id'))
    )
    op.create_index('ix_webhook_deliveries_age', 'webhook_deliveries', ['created_at'], unique=False)
    op.create_index('ix_webhook_deliveries_due', 'webhook_deliveries', ['endpoint_id', 'next_attempt_at'], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.create_index('ix_webhook_deliveries_in_hand', 'webhook_deliveries', ['endpoint_id', 'lease_until'], unique=False, postgresql_where=sa.text('lease_until IS NOT NULL'))
    op.create_index('ix_webhook_deliveries_newest', 'webhook_deliveries', ['endpoint_id', sa.literal_column('id DESC')], unique=False)
    op.create_index('ix_webhook_deliveries_open', 'webhook_deliveries', ['endpoint_id', 'payment_id', 'sequence'], unique=False, postgresql_where=sa.text("status = 'pending'"))
    op.create_table('webhook_attempts',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('delivery_id', sa.Uuid(), nullable=False),
    sa.Column('generation', sa.Integer(), nullable=False),
    sa.Column('trigger', sa.Text(), nullable=False),
    sa.Column('url', sa.Text(), nullable=False),
    sa.Column('started_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('finished_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('outcome', sa.Text(), nullable=True),
    sa.Column('http_status', sa.Integer(), nullable=True),
    sa.Column('answer', sa.LargeBinary(), nullable=True),
    sa.Column('elapsed_ms', sa.Integer(), nullable=True),
    sa.CheckConstraint('(finished_at IS NULL) = (outcome IS NULL)', name=op.f('ck_webhook_attempts_closed_has_outcome')),
    sa.ForeignKeyConstraint(['delivery_id'], ['webhook_deliveries.id'], name=op.f('fk_webhook_attempts_delivery_id_webhook_deliveries'), ondelete='CASCADE'),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_webhook_attempts_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_webhook_attempts')),
    sa.UniqueConstraint('delivery_id', 'generation', name=op.f('uq_webhook_attempts_delivery_id_generation'))
    )
    op.create_index('ix_webhook_attempts_age', 'webhook_attempts', ['started_at'], unique=False)
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY tenant_wall ON {table} USING"
            " (current_setting('maramoja.tenant', true) IN (tenant_id::text, '*'))"
        )
    for statement in RULES:
        op.execute(statement)
    wall = op.get_context().script.get_revision('0002').module
    if (role := wall.application_role()) is not None:
        op.execute(f"GRANT SELECT, INSERT, UPDATE ON {', '.join(TABLES)} TO {role}")
        # Rows past their retention time are deleted; the events stay.
        op.execute(f"GRANT DELETE ON webhook_deliveries, webhook_attempts TO {role}")
        op.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")


def downgrade() -> None:
    op.execute("DROP TRIGGER payment_events_are_news ON payment_events")
    op.execute("DROP FUNCTION payment_event_is_news()")
    for table in reversed(TABLES):
        op.drop_table(table)
    for function in ("event", "delivery", "attempt"):
        op.execute(f"DROP FUNCTION webhook_{function}_change_is_lawful()")
