"""Keys get scopes, networks and an expiry; a tenant gets a rate limit for all its keys together.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0003'
down_revision = '0002'

SCOPES = ("payments:read", "payments:write", "payouts:write", "webhooks:manage", "payers:read")
ALL_SCOPES = "{" + ",".join(SCOPES) + "}"


def upgrade() -> None:
    # Existing keys get all scopes, because they had all rights before.
    op.add_column('api_keys', sa.Column('scopes', postgresql.ARRAY(sa.Text()), server_default=ALL_SCOPES, nullable=False))
    op.add_column('api_keys', sa.Column('networks', postgresql.ARRAY(postgresql.CIDR()), server_default='{}', nullable=False))
    op.add_column('api_keys', sa.Column('expires_at', postgresql.TIMESTAMP(timezone=True), nullable=True))
    op.add_column('api_keys', sa.Column('last_used_at', postgresql.TIMESTAMP(timezone=True), nullable=True))
    known = ", ".join(f"'{scope}'" for scope in SCOPES)
    op.create_check_constraint(op.f('ck_api_keys_scopes_known'), 'api_keys', f"scopes <@ ARRAY[{known}] AND cardinality(scopes) > 0")
    op.add_column('tenants', sa.Column('tenant_rate_limit', sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column('tenants', 'tenant_rate_limit')
    op.drop_constraint(op.f('ck_api_keys_scopes_known'), 'api_keys')
    for name in ('last_used_at', 'expires_at', 'networks', 'scopes'):
        op.drop_column('api_keys', name)
