"""Our role may change only the columns that the gateway changes; a key's identity never changes.

Until now it could change every column of most tables: give a key more scopes, undo its revocation, move it
to another tenant. Older code changes no other columns than these.

A later migration that adds a column which the gateway changes must grant UPDATE of it, and add it to
payments_app/commands/doctor/rights.py: docs/decisions/0037-what-the-database-role-may-do.md.

Revision ID: 0016
"""

from alembic import op

revision = '0016'
down_revision = '0015'

# The columns that may be changed, by table. Of other tables, none.
COLUMNS = {
    "tenants": (
        "status, require_idempotency_key, rate_limit, tenant_rate_limit, default_provider, data_key,"
        " held_at, held_why, restored_at"
    ),
    "api_keys": "expires_at, last_used_at, revoked_at",
    "provider_accounts": "base_url, target_environment, credentials, version, updated_at",
    "payments": (
        "status, stage, failure_code, failure_provider_code, provider_transaction_id, evidence_id,"
        " sequence, next_step, next_action_at, hinted, lease_until, generation, submissions,"
        " submitted_at, updated_at, final_at, payer, payer_index, payer_masked"
    ),
    "events": "position, feed_data, previous_hash, hash",
    "provider_exchanges": (
        "verdict, reason, http_status, body, failure_code, failure_provider_code, elapsed_ms,"
        " requests_left, finished_at"
    ),
    "idempotency_keys": "body, headers, field_digests",
    "invariant_breaks": "resolved_at, resolution",
    "webhook_endpoints": (
        "url, description, event_types, secret, previous_secret, previous_secret_until, status,"
        " disabled_reason, disabled_at, failing_since, warned_days, timeouts, served_at, updated_at,"
        " deleted_at"
    ),
    "webhook_deliveries": (
        "status, trigger, attempts, next_attempt_at, lease_until, generation, delivered_at"
    ),
    "webhook_attempts": "finished_at, outcome, http_status, answer, elapsed_ms",
    # The previous release publishes through this view.
    "webhook_events": "position, data",
}
# Tables of which every column could be changed until now.
BEFORE = tuple(table for table in COLUMNS if table != "events")
STAYS = """
    CREATE FUNCTION public.row_stays_what_it_is() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
    BEGIN
        RAISE EXCEPTION 'what a row of % is never changes, nor an end that it has', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation';
    END $$
"""
# The check is in the WHEN condition, so that an allowed change calls no function.
TRIGGER = """
    CREATE TRIGGER {table}_stay BEFORE UPDATE ON {table} FOR EACH ROW
    WHEN (({old}) IS DISTINCT FROM ({new}){more}) EXECUTE FUNCTION public.row_stays_what_it_is()
"""
IDENTITY = {
    "tenants": ("id", "slug", "created_at"),
    "api_keys": (
        "id", "tenant_id", "prefix", "key_hash", "mode", "name", "scopes", "networks", "created_at",
    ),
    "provider_accounts": ("id", "tenant_id", "provider", "mode", "created_at"),
    "webhook_endpoints": ("id", "tenant_id", "mode", "created_at"),
}
# A revocation or deletion is never undone, and an expiry is never postponed.
ENDS = {
    "tenants": " OR OLD.data_key IS NOT NULL AND NEW.data_key IS NULL",
    "api_keys": (
        " OR OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at"
        " OR OLD.expires_at IS NOT NULL AND coalesce(NEW.expires_at > OLD.expires_at, true)"
    ),
    "webhook_endpoints": (
        " OR OLD.deleted_at IS NOT NULL AND NEW.deleted_at IS DISTINCT FROM OLD.deleted_at"
    ),
}
# Queries reach a partition through its table, so no role needs a right to the partition itself.
WALL = """
    CREATE OR REPLACE FUNCTION public.wall_webhook_attempts(name text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
    BEGIN
        EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant_wall ON public.%I USING'
            ' (current_setting(''maramoja.tenant'', true) IN (tenant_id::text, ''*''))', name);
        PERFORM public.keep_to_table(name);
    END $$
"""
KEEP_TO_TABLE = """
    CREATE FUNCTION public.keep_to_table(name text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
    DECLARE given record;
    BEGIN
        FOR given IN
            SELECT DISTINCT pg_get_userbyid(g.grantee) AS role
            FROM pg_catalog.pg_class c, aclexplode(c.relacl) g
            WHERE c.oid = format('public.%I', name)::regclass AND c.relispartition
              AND g.grantee NOT IN (0, c.relowner)
        LOOP
            EXECUTE format('REVOKE ALL ON public.%I FROM %I', name, given.role);
        END LOOP;
    END $$
"""
PARTITIONS = """
    SELECT public.keep_to_table(c.relname) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
    WHERE inhparent = 'public.webhook_attempts'::regclass
"""


def upgrade() -> None:
    op.execute(STAYS)
    for table, names in IDENTITY.items():
        old, new = (", ".join(f"{row}.{name}" for name in names) for row in ("OLD", "NEW"))
        op.execute(TRIGGER.format(table=table, old=old, new=new, more=ENDS.get(table, "")))
    for statement in (KEEP_TO_TABLE, WALL, PARTITIONS):
        op.execute(statement)
    if (role := _application_role()) is not None:
        op.execute(f"ALTER DEFAULT PRIVILEGES REVOKE UPDATE ON TABLES FROM {role}")
        op.execute(f"REVOKE UPDATE ON ALL TABLES IN SCHEMA public FROM {role}")
        for table, columns in COLUMNS.items():
            op.execute(f"GRANT UPDATE ({columns}) ON {table} TO {role}")


def downgrade() -> None:
    if (role := _application_role()) is not None:
        for table in BEFORE:
            op.execute(f"REVOKE UPDATE ({COLUMNS[table]}) ON {table} FROM {role}")
            op.execute(f"GRANT UPDATE ON {table} TO {role}")
    op.execute(
        op.get_context().script.get_revision('0009').module.FUNCTIONS[3]
        .replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
        .replace("pg_catalog, public", "pg_catalog, public, pg_temp")
    )
    op.execute("DROP FUNCTION keep_to_table(text)")
    for table in IDENTITY:
        op.execute(f"DROP TRIGGER {table}_stay ON {table}")
    op.execute("DROP FUNCTION row_stays_what_it_is()")


def _application_role() -> str | None:
    wall = op.get_context().script.get_revision('0002').module
    role: str | None = wall.application_role()
    return role
