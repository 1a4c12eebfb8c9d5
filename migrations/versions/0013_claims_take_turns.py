"""Claims take turns: the index of open payments by account, tenant and next step.

`hinted` means that a callback or the operator requests an early status check. Older code neither sets
nor reads it: there, a hint is only an earlier `next_action_at`, as before. Older code finds due payments
by the new index, which has exactly the open payments: slower, while very many are open.

Revision ID: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = '0013'
down_revision = '0012'

ACCOUNT = (
    "(CASE WHEN account_id IS NULL THEN '00000000-0000-0000-0000-000000000000'::uuid ELSE account_id END)"
)
LANE = "(CASE WHEN next_step = 'submit' THEN 0 WHEN hinted THEN 1 ELSE 2 END)"


def upgrade() -> None:
    op.add_column(
        'payments', sa.Column('hinted', sa.Boolean(), server_default=sa.text('false'), nullable=False)
    )
    op.create_index(
        'ix_payments_queues',
        'payments',
        ['provider', sa.text(ACCOUNT), 'tenant_id', sa.text(LANE), 'next_action_at'],
        unique=False,
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.drop_index('ix_payments_due', table_name='payments', postgresql_where=sa.text("status = 'PENDING'"))


def downgrade() -> None:
    op.create_index(
        'ix_payments_due',
        'payments',
        ['next_action_at'],
        unique=False,
        postgresql_where=sa.text("status = 'PENDING'"),
    )
    op.drop_index(
        'ix_payments_queues', table_name='payments', postgresql_where=sa.text("status = 'PENDING'")
    )
    op.drop_column('payments', 'hinted')
