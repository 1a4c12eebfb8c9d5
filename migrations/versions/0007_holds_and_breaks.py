"""Holds: a tenant whose payments aren't sent, and the invariant violations that cause a hold.

Expands only: what the previous version uses stays as it was.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0007'
down_revision = '0006'

RULES = (
    # A violation is recorded once, and resolved once.
    """
    CREATE FUNCTION invariant_break_change_is_lawful() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.resolved_at IS NOT NULL
           OR (OLD.id, OLD.tenant_id, OLD.invariant, OLD.subject, OLD.detail, OLD.found_at)
              IS DISTINCT FROM
              (NEW.id, NEW.tenant_id, NEW.invariant, NEW.subject, NEW.detail, NEW.found_at) THEN
            RAISE EXCEPTION 'a break is resolved once and never changes'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER invariant_breaks_lawful BEFORE UPDATE ON invariant_breaks
    FOR EACH ROW EXECUTE FUNCTION invariant_break_change_is_lawful()
    """,
    """
    CREATE TRIGGER invariant_breaks_never_removed BEFORE DELETE ON invariant_breaks
    FOR EACH ROW EXECUTE FUNCTION refuse_change()
    """,
    """
    CREATE TRIGGER invariant_breaks_never_emptied BEFORE TRUNCATE ON invariant_breaks
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
    """,
)


def upgrade() -> None:
    op.add_column('tenants', sa.Column('held_at', postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column('tenants', sa.Column('held_why', sa.Text(), nullable=True))
    op.create_check_constraint(op.f('ck_tenants_held_has_reason'), 'tenants', '(held_at IS NULL) = (held_why IS NULL)')
    op.create_table('invariant_breaks',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('tenant_id', sa.Uuid(), nullable=False),
    sa.Column('invariant', sa.Text(), nullable=False),
    sa.Column('subject', sa.Text(), nullable=False),
    sa.Column('detail', sa.Text(), nullable=False),
    sa.Column('found_at', postgresql.TIMESTAMP(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('resolved_at', postgresql.TIMESTAMP(timezone=True), nullable=True),
    sa.Column('resolution', sa.Text(), nullable=True),
    sa.CheckConstraint('(resolved_at IS NULL) = (resolution IS NULL)', name=op.f('ck_invariant_breaks_resolved_has_reason')),
    sa.ForeignKeyConstraint(['tenant_id'], ['tenants.id'], name=op.f('fk_invariant_breaks_tenant_id_tenants')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_invariant_breaks')),
    sa.UniqueConstraint('tenant_id', 'invariant', 'subject', name=op.f('uq_invariant_breaks_tenant_id_invariant_subject'))
    )
    op.create_index('ix_invariant_breaks_open', 'invariant_breaks', ['tenant_id'], unique=False, postgresql_where=sa.text('resolved_at IS NULL'))
    op.execute("ALTER TABLE invariant_breaks ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE invariant_breaks FORCE ROW LEVEL SECURITY")
    op.execute(
        "CREATE POLICY tenant_wall ON invariant_breaks USING"
        " (current_setting('maramoja.tenant', true) IN (tenant_id::text, '*'))"
    )
    for statement in RULES:
        op.execute(statement)
    wall = op.get_context().script.get_revision('0002').module
    if (role := wall.application_role()) is not None:
        op.execute(f"GRANT SELECT, INSERT, UPDATE ON invariant_breaks TO {role}")


def downgrade() -> None:
    op.drop_table('invariant_breaks')
    op.execute("DROP FUNCTION invariant_break_change_is_lawful()")
    op.drop_constraint(op.f('ck_tenants_held_has_reason'), 'tenants')
    op.drop_column('tenants', 'held_why')
    op.drop_column('tenants', 'held_at')
