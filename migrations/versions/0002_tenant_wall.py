"""Row-level security: a transaction sees only its tenant's rows, even if a query has no tenant filter.

Revision ID: 0002
"""

from alembic import op
from flask import current_app
from sqlalchemy import make_url, text

revision = '0002'
down_revision = '0001'

# Each table's column with the tenant.
TENANT_COLUMNS = {
    "tenants": "id",
    "api_keys": "tenant_id",
    "provider_accounts": "tenant_id",
    "payments": "tenant_id",
    "payment_events": "tenant_id",
    "provider_exchanges": "tenant_id",
    "callbacks": "tenant_id",
    "idempotency_keys": "tenant_id",
    "audit_entries": "tenant_id",
}
APPEND_ONLY = ("payment_events", "audit_entries", "callbacks")

# Lookups across tenants. Each switches to all tenants for one query and then switches back; after an
# error, the transaction's end does. Only a superuser may write this as the function's own SET.
DOORS = (
    # A request with a key has no tenant yet: this finds one key by its prefix, with its tenant.
    """
    CREATE FUNCTION key_and_tenant(wanted text) RETURNS TABLE (key api_keys, tenant tenants)
    LANGUAGE plpgsql ROWS 1 AS $$
    DECLARE before text := coalesce(current_setting('maramoja.tenant', true), '');
    BEGIN
        PERFORM set_config('maramoja.tenant', '*', true);
        RETURN QUERY
            SELECT k, t FROM api_keys k JOIN tenants t ON t.id = k.tenant_id
            WHERE k.prefix = wanted;
        PERFORM set_config('maramoja.tenant', before, true);
    END $$
    """,
    # A callback identifies a payment by the reference that only the provider and we know.
    """
    CREATE FUNCTION tenant_of_reference(rail text, wanted uuid) RETURNS uuid
    LANGUAGE plpgsql AS $$
    DECLARE
        before text := coalesce(current_setting('maramoja.tenant', true), '');
        found uuid;
    BEGIN
        PERFORM set_config('maramoja.tenant', '*', true);
        SELECT tenant_id INTO found FROM payments WHERE reference = wanted AND provider = rail;
        PERFORM set_config('maramoja.tenant', before, true);
        RETURN found;
    END $$
    """,
)


def application_role() -> str | None:
    """The role in DATABASE_URL, if it isn't the one that migrates."""
    name = make_url(current_app.extensions["maramoja"].settings.database_url).username
    migrating = op.get_bind().scalar(text("SELECT current_user"))
    exists = op.get_bind().scalar(
        text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :name)"), {"name": name}
    )
    return f'"{name}"' if exists and name != migrating else None


def upgrade() -> None:
    for table, column in TENANT_COLUMNS.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        # For the owner too: migrations that change rows set '*'.
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY tenant_wall ON {table} USING"
            f" (current_setting('maramoja.tenant', true) IN ({column}::text, '*'))"
        )
    for statement in DOORS:
        op.execute(statement)
    if (role := application_role()) is not None:
        tables = "ALL TABLES IN SCHEMA public"
        op.execute(f"GRANT SELECT, INSERT, UPDATE ON {tables} TO {role}")
        op.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
        op.execute(f"REVOKE UPDATE ON {', '.join(APPEND_ONLY)} FROM {role}")
        op.execute(f"REVOKE DELETE, TRUNCATE ON {tables} FROM {role}")
        op.execute(f"REVOKE INSERT, UPDATE ON alembic_version FROM {role}")


def downgrade() -> None:
    op.execute("DROP FUNCTION tenant_of_reference(text, uuid)")
    op.execute("DROP FUNCTION key_and_tenant(text)")
    for table in TENANT_COLUMNS:
        op.execute(f"DROP POLICY tenant_wall ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
