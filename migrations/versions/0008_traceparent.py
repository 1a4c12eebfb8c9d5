"""A payment's row stores the trace context of its acceptance, because the row is the queue.

Only adds: older code neither reads nor writes the column.

Revision ID: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = '0008'
down_revision = '0007'

# W3C Trace Context, version 00; neither the trace id nor the span id is all zeros.
FORM = "traceparent ~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-0[0-3]$'"


def upgrade() -> None:
    op.add_column('payments', sa.Column('traceparent', sa.Text(), nullable=True))
    # NOT VALID adds it without a scan; existing rows are null, so VALIDATE finds no violation.
    op.execute(f"ALTER TABLE payments ADD CONSTRAINT ck_payments_traceparent_form CHECK ({FORM}) NOT VALID")
    op.execute("ALTER TABLE payments VALIDATE CONSTRAINT ck_payments_traceparent_form")


def downgrade() -> None:
    op.drop_column('payments', 'traceparent')
