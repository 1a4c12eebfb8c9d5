"""A payment keeps the trace that it was accepted in: its row is the queue, so the row carries it on.

Only adds: code from before neither reads nor writes the column.

Revision ID: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = '0008'
down_revision = '0007'

# W3C Trace Context, version 00; not all zeros, neither the trace's id nor the span's.
FORM = "traceparent ~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[0-3]$'"


def upgrade() -> None:
    op.add_column('payments', sa.Column('traceparent', sa.Text(), nullable=True))
    # No scan under a lock: what was there before is null.
    op.execute(f"ALTER TABLE payments ADD CONSTRAINT ck_payments_traceparent_form CHECK ({FORM}) NOT VALID")
    op.execute("ALTER TABLE payments VALIDATE CONSTRAINT ck_payments_traceparent_form")


def downgrade() -> None:
    op.drop_column('payments', 'traceparent')
