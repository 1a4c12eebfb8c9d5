"""The first schema, and the rules that the database itself enforces.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0001'
down_revision = None

FUNCTIONS = (
    "refuse_change",
    "payment_is_born_open",
    "payment_change_is_lawful",
    "payment_change_has_event",
    "exchange_change_is_lawful",
    "idempotency_key_stays",
)

RULES = (
    # Rows of these tables may only be added.
    """
    CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '% of % is refused: its rows are never changed or removed',
            TG_OP, TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
    END $$
    """,
    *(
        f"""
        CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table}
        FOR EACH ROW EXECUTE FUNCTION refuse_change()
        """
        for table in ("payment_events", "audit_entries", "callbacks")
    ),
    *(
        f"""
        CREATE TRIGGER {table}_never_removed BEFORE DELETE ON {table}
        FOR EACH ROW EXECUTE FUNCTION refuse_change()
        """
        for table in ("payments", "provider_exchanges", "idempotency_keys")
    ),
    *(
        f"""
        CREATE TRIGGER {table}_never_emptied BEFORE TRUNCATE ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
        """
        for table in (
            "payments",
            "payment_events",
            "provider_exchanges",
            "callbacks",
            "idempotency_keys",
            "audit_entries",
        )
    ),
    # A payment is inserted as PENDING, never as final.
    """
    CREATE FUNCTION payment_is_born_open() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.status <> 'PENDING' THEN
            RAISE EXCEPTION 'a payment begins PENDING' USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER payments_born_open BEFORE INSERT ON payments
    FOR EACH ROW EXECUTE FUNCTION payment_is_born_open()
    """,
    # The order never changes. Of a final payment, only the sequence of its events may change. A final
    # status needs a stored response of the provider, about this payment, that says this status.
    """
    CREATE FUNCTION payment_change_is_lawful() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (OLD.id, OLD.tenant_id, OLD.mode, OLD.flow, OLD.provider, OLD.account_id,
            OLD.base_url, OLD.target_environment, OLD.merchant, OLD.reference, OLD.amount_minor,
            OLD.currency, OLD.payer, OLD.created_at)
           IS DISTINCT FROM
           (NEW.id, NEW.tenant_id, NEW.mode, NEW.flow, NEW.provider, NEW.account_id,
            NEW.base_url, NEW.target_environment, NEW.merchant, NEW.reference, NEW.amount_minor,
            NEW.currency, NEW.payer, NEW.created_at) THEN
            RAISE EXCEPTION 'what a payment is for never changes'
                USING ERRCODE = 'restrict_violation';
        END IF;
        IF NEW.generation < OLD.generation OR NEW.sequence < OLD.sequence THEN
            RAISE EXCEPTION 'generation and sequence never go back'
                USING ERRCODE = 'restrict_violation';
        END IF;
        IF OLD.status <> 'PENDING' THEN
            IF to_jsonb(OLD) - 'sequence' <> to_jsonb(NEW) - 'sequence' THEN
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
    """,
    """
    CREATE TRIGGER payments_lawful BEFORE UPDATE ON payments
    FOR EACH ROW EXECUTE FUNCTION payment_change_is_lawful()
    """,
    # A change of status needs its event, written in the same transaction.
    """
    CREATE FUNCTION payment_change_has_event() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM payment_events
            WHERE payment_id = NEW.id AND tenant_id = NEW.tenant_id AND status = NEW.status
              AND transaction_id = (pg_current_xact_id()::text)::bigint
        ) THEN
            RAISE EXCEPTION 'a change of status needs its event in the same transaction'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE CONSTRAINT TRIGGER payments_born_with_event AFTER INSERT ON payments
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION payment_change_has_event()
    """,
    """
    CREATE CONSTRAINT TRIGGER payments_change_with_event AFTER UPDATE ON payments
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION payment_change_has_event()
    """,
    # Evidence: an open exchange is closed once, and never changes after that.
    """
    CREATE FUNCTION exchange_change_is_lawful() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.finished_at IS NOT NULL
           OR (OLD.tenant_id, OLD.payment_id, OLD.generation, OLD.kind, OLD.reference)
              IS DISTINCT FROM
              (NEW.tenant_id, NEW.payment_id, NEW.generation, NEW.kind, NEW.reference) THEN
            RAISE EXCEPTION 'evidence never changes' USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER provider_exchanges_lawful BEFORE UPDATE ON provider_exchanges
    FOR EACH ROW EXECUTE FUNCTION exchange_change_is_lawful()
    """,
    # A key's stored response may be removed; the request and the payment of a key never change.
    """
    CREATE FUNCTION idempotency_key_stays() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (OLD.tenant_id, OLD.mode, OLD.key, OLD.fingerprint, OLD.fingerprint_version,
            OLD.resource_id, OLD.status)
           IS DISTINCT FROM
           (NEW.tenant_id, NEW.mode, NEW.key, NEW.fingerprint, NEW.fingerprint_version,
            NEW.resource_id, NEW.status)
           OR (NEW.body IS NOT NULL AND NEW.body IS DISTINCT FROM OLD.body) THEN
            RAISE EXCEPTION 'what an idempotency key stands for never changes'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER idempotency_keys_lawful BEFORE UPDATE ON idempotency_keys
    FOR EACH ROW EXECUTE FUNCTION idempotency_key_stays()
    """,
    # The application's plain role, if the operator has created it. It owns nothing.
    """
    DO $$ BEGIN
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'maramoja_app') THEN
            GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO maramoja_app;
            REVOKE UPDATE ON payment_events, audit_entries, callbacks FROM maramoja_app;
            REVOKE DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public FROM maramoja_app;
        END IF;
    END $$
    """,
)


def upgrade() -> None:
    op.create_table('tenants',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('slug', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('status', sa.Text(), server_default='active', nullable=False),
    sa.Column('require_idempotency_key', sa.Boolean(), server_default=sa.text('false'), nullable=False),
    sa.Column('rate_limit', sa.Text(), nullable=True),
    sa.Column('default_provider', sa.Text(), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("slug ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'", name=op.f('ck_tenants_slug_form')),
    sa.CheckConstraint("status IN ('active', 'suspended')", name=op.f('ck_tenants_status_known')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_tenants')),
    sa.UniqueConstraint('slug', name=op.f('uq_tenants_slug'))
    )
    op.create_table('api_keys',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('prefix', sa.Text(), nullable=False),
    sa.Column('key_hash', sa.LargeBinary(), nullable=False),
    sa.Column('mode', sa.Text(), nullable=False),
    sa.Column('name', sa.Text(), server_default='', nullable=False),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('revoked_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("mode IN ('live', 'test')", name=op.f('ck_api_keys_mode_known')),
    sa.CheckConstraint('octet_length(key_hash) = 32', name=op.f('ck_api_keys_hash_is_sha256')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_api_keys_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_api_keys')),
    sa.UniqueConstraint('prefix', name=op.f('uq_api_keys_prefix'))
    )
    op.create_index(op.f('ix_api_keys_tenant_id'), 'api_keys', ['tenant_id'], unique=False)
    op.create_table('audit_entries',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('actor', sa.Text(), nullable=False),
    sa.Column('action', sa.Text(), nullable=False),
    sa.Column('subject_type', sa.Text(), nullable=False),
    sa.Column('subject_id', sa.Text(), nullable=False),
    sa.Column('request_id', sa.Text(), nullable=True),
    sa.Column('detail', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_audit_entries_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_audit_entries'))
    )
    op.create_index(op.f('ix_audit_entries_tenant_id'), 'audit_entries', ['tenant_id'], unique=False)
    op.create_table('provider_accounts',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('provider', sa.Text(), nullable=False),
    sa.Column('mode', sa.Text(), nullable=False),
    sa.Column('base_url', sa.Text(), nullable=False),
    sa.Column('target_environment', sa.Text(), nullable=False),
    sa.Column('credentials', sa.Text(), nullable=False),
    sa.Column('version', sa.Integer(), server_default='1', nullable=False),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint("mode IN ('live', 'test')", name=op.f('ck_provider_accounts_mode_known')),
    sa.CheckConstraint("mode = 'live' OR target_environment = 'sandbox'", name=op.f('ck_provider_accounts_test_is_sandbox')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_provider_accounts_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_provider_accounts')),
    sa.UniqueConstraint('tenant_id', 'provider', 'mode', name=op.f('uq_provider_accounts_tenant_id_provider_mode'))
    )
    op.create_table('payments',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('mode', sa.Text(), nullable=False),
    sa.Column('flow', sa.Text(), nullable=False),
    sa.Column('provider', sa.Text(), nullable=False),
    sa.Column('account_id', sa.Uuid(), nullable=True),
    sa.Column('base_url', sa.Text(), nullable=False),
    sa.Column('target_environment', sa.Text(), nullable=False),
    sa.Column('merchant', sa.Text(), nullable=False),
    sa.Column('reference', sa.Uuid(), nullable=False),
    sa.Column('amount_minor', sa.BigInteger(), nullable=False),
    sa.Column('currency', sa.Text(), nullable=False),
    sa.Column('payer', sa.Text(), nullable=False),
    sa.Column('external_id', sa.Text(), nullable=True),
    sa.Column('payer_message', sa.Text(), nullable=True),
    sa.Column('payee_note', sa.Text(), nullable=True),
    sa.Column('description', sa.Text(), nullable=True),
    sa.Column('metadata', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('status', sa.Text(), nullable=False),
    sa.Column('stage', sa.Text(), nullable=False),
    sa.Column('failure_code', sa.Text(), nullable=True),
    sa.Column('failure_provider_code', sa.Text(), nullable=True),
    sa.Column('provider_transaction_id', sa.Text(), nullable=True),
    sa.Column('evidence_id', sa.BigInteger(), nullable=True),
    sa.Column('sequence', sa.Integer(), nullable=False),
    sa.Column('next_step', sa.Text(), nullable=False),
    sa.Column('next_action_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=True),
    sa.Column('lease_until', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('generation', sa.Integer(), nullable=False),
    sa.Column('submissions', sa.Integer(), nullable=False),
    sa.Column('submitted_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.Column('updated_at', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.Column('final_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("(stage = 'final') = (status <> 'PENDING')", name=op.f('ck_payments_final_has_ended')),
    sa.CheckConstraint("(status = 'FAILED') = (failure_code IS NOT NULL)", name=op.f('ck_payments_failure_has_code')),
    sa.CheckConstraint("(status = 'PENDING') = (evidence_id IS NULL)", name=op.f('ck_payments_end_has_evidence')),
    sa.CheckConstraint("(status = 'PENDING') = (final_at IS NULL)", name=op.f('ck_payments_end_has_time')),
    sa.CheckConstraint("(status = 'PENDING') = (next_action_at IS NOT NULL)", name=op.f('ck_payments_open_is_never_forgotten')),
    sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name=op.f('ck_payments_currency_form')),
    sa.CheckConstraint("flow IN ('collection')", name=op.f('ck_payments_flow_known')),
    sa.CheckConstraint("mode IN ('live', 'test')", name=op.f('ck_payments_mode_known')),
    sa.CheckConstraint("next_step IN ('submit', 'check')", name=op.f('ck_payments_step_known')),
    sa.CheckConstraint("payer ~ '^[1-9][0-9]{7,14}$'", name=op.f('ck_payments_payer_form')),
    sa.CheckConstraint("stage IN ('accepted', 'submitting', 'awaiting_payer', 'unknown', 'final')", name=op.f('ck_payments_stage_known')),
    sa.CheckConstraint("status IN ('PENDING', 'SUCCESSFUL', 'FAILED')", name=op.f('ck_payments_status_known')),
    sa.CheckConstraint('amount_minor > 0', name=op.f('ck_payments_amount_positive')),
    sa.ForeignKeyConstraint(['account_id'], ['provider_accounts.id'], name=op.f('fk_payments_account_id_provider_accounts')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_payments_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_payments')),
    sa.UniqueConstraint('reference', name=op.f('uq_payments_reference')),
    sa.UniqueConstraint('tenant_id', 'mode', 'external_id', name=op.f('uq_payments_tenant_id_mode_external_id'))
    )
    op.create_index('ix_payments_due', 'payments', ['next_action_at'], unique=False, postgresql_where=sa.text("status = 'PENDING'"))
    op.create_index('ix_payments_newest', 'payments', ['tenant_id', 'mode', sa.literal_column('created_at DESC'), sa.literal_column('id DESC')], unique=False)
    op.create_index('ix_payments_payer', 'payments', ['tenant_id', 'payer', sa.literal_column('created_at DESC')], unique=False)
    op.create_table('callbacks',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('payment_id', sa.Uuid(), nullable=False),
    sa.Column('digest', sa.LargeBinary(), nullable=False),
    sa.Column('method', sa.Text(), nullable=False),
    sa.Column('body', sa.LargeBinary(), nullable=False),
    sa.Column('source', sa.Text(), nullable=True),
    sa.Column('received_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['payment_id'], ['payments.id'], name=op.f('fk_callbacks_payment_id_payments')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_callbacks_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_callbacks')),
    sa.UniqueConstraint('payment_id', 'digest', name=op.f('uq_callbacks_payment_id_digest'))
    )
    op.create_table('idempotency_keys',
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('mode', sa.Text(), nullable=False),
    sa.Column('key', sa.Uuid(), nullable=False),
    sa.Column('fingerprint', sa.LargeBinary(), nullable=False),
    sa.Column('fingerprint_version', sa.Integer(), nullable=False),
    sa.Column('field_digests', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('resource_id', sa.Uuid(), nullable=False),
    sa.Column('status', sa.Integer(), nullable=False),
    sa.Column('headers', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True),
    sa.Column('body', sa.LargeBinary(), nullable=True),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('expires_at', postgresql.TIMESTAMP(timezone=True), nullable=False),
    sa.CheckConstraint("mode IN ('live', 'test')", name=op.f('ck_idempotency_keys_mode_known')),
    sa.CheckConstraint('octet_length(fingerprint) = 32', name=op.f('ck_idempotency_keys_fingerprint_is_sha256')),
    sa.ForeignKeyConstraint(['resource_id'], ['payments.id'], name=op.f('fk_idempotency_keys_resource_id_payments'), initially='DEFERRED', deferrable=True),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_idempotency_keys_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('tenant_id', 'mode', 'key', name=op.f('pk_idempotency_keys'))
    )
    op.create_index('ix_idempotency_keys_expiry', 'idempotency_keys', ['expires_at'], unique=False, postgresql_where=sa.text('body IS NOT NULL'))
    op.create_table('payment_events',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('payment_id', sa.Uuid(), nullable=False),
    sa.Column('sequence', sa.Integer(), nullable=False),
    sa.Column('type', sa.Text(), nullable=False),
    sa.Column('status', sa.Text(), nullable=False),
    sa.Column('stage', sa.Text(), nullable=False),
    sa.Column('actor', sa.Text(), nullable=False),
    sa.Column('request_id', sa.Text(), nullable=True),
    sa.Column('data', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('transaction_id', sa.BigInteger(), server_default=sa.text('(pg_current_xact_id()::text)::bigint'), nullable=False),
    sa.Column('created_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.CheckConstraint('sequence > 0', name=op.f('ck_payment_events_sequence_positive')),
    sa.ForeignKeyConstraint(['payment_id'], ['payments.id'], name=op.f('fk_payment_events_payment_id_payments')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_payment_events_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_payment_events')),
    sa.UniqueConstraint('payment_id', 'sequence', name=op.f('uq_payment_events_payment_id_sequence'))
    )
    op.create_table('provider_exchanges',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('payment_id', sa.Uuid(), nullable=False),
    sa.Column('generation', sa.Integer(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('reference', sa.Uuid(), nullable=False),
    sa.Column('verdict', sa.Text(), nullable=True),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('http_status', sa.Integer(), nullable=True),
    sa.Column('body', sa.LargeBinary(), nullable=True),
    sa.Column('failure_code', sa.Text(), nullable=True),
    sa.Column('failure_provider_code', sa.Text(), nullable=True),
    sa.Column('elapsed_ms', sa.Integer(), nullable=True),
    sa.Column('started_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('finished_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.CheckConstraint("kind = 'submit' OR finished_at IS NOT NULL", name=op.f('ck_provider_exchanges_only_submit_is_open')),
    sa.CheckConstraint("kind IN ('submit', 'check')", name=op.f('ck_provider_exchanges_kind_known')),
    sa.CheckConstraint('(finished_at IS NULL) = (verdict IS NULL)', name=op.f('ck_provider_exchanges_closed_has_verdict')),
    sa.ForeignKeyConstraint(['payment_id'], ['payments.id'], name=op.f('fk_provider_exchanges_payment_id_payments')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_provider_exchanges_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_provider_exchanges')),
    sa.UniqueConstraint('payment_id', 'generation', name=op.f('uq_provider_exchanges_payment_id_generation'))
    )
    # Payments and exchanges refer to each other, so one of the foreign keys is added last.
    op.create_foreign_key(
        op.f("fk_payments_evidence_id_provider_exchanges"),
        "payments",
        "provider_exchanges",
        ["evidence_id"],
        ["id"],
    )
    for statement in RULES:
        op.execute(statement)


def downgrade() -> None:
    op.drop_constraint(op.f("fk_payments_evidence_id_provider_exchanges"), "payments")
    op.drop_table('provider_exchanges')
    op.drop_table('payment_events')
    op.drop_index('ix_idempotency_keys_expiry', table_name='idempotency_keys', postgresql_where=sa.text('body IS NOT NULL'))
    op.drop_table('idempotency_keys')
    op.drop_table('callbacks')
    op.drop_index('ix_payments_payer', table_name='payments')
    op.drop_index('ix_payments_newest', table_name='payments')
    op.drop_index('ix_payments_due', table_name='payments', postgresql_where=sa.text("status = 'PENDING'"))
    op.drop_table('payments')
    op.drop_table('provider_accounts')
    op.drop_index(op.f('ix_audit_entries_tenant_id'), table_name='audit_entries')
    op.drop_table('audit_entries')
    op.drop_index(op.f('ix_api_keys_tenant_id'), table_name='api_keys')
    op.drop_table('api_keys')
    op.drop_table('tenants')
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}()")
