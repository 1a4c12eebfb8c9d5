"""Each function looks up names in our own schemas, temporary ones last; only our role may call it.

PostgreSQL looks up a table or a type among a session's temporary ones first, unless `search_path` names
`pg_temp` last. So a temporary table could replace evidence, and a temporary view a catalogue table,
which a function read with its owner's rights.

Older code calls the same functions with the same arguments, and makes no temporary table. Why, and what
a later migration has to do: docs/decisions/0037-what-the-database-role-may-do.md.

Revision ID: 0015
"""

from alembic import op

revision = '0015'
down_revision = '0014'

PATH = "pg_catalog, public, pg_temp"
FUNCTIONS = (
    "audit_entry_hash(audit_entries)",
    "audit_entry_is_chained()",
    "event_change_is_lawful()",
    "event_follows_another()",
    "event_is_published_already()",
    "exchange_change_is_lawful()",
    "idempotency_key_stays()",
    "invariant_break_change_is_lawful()",
    "key_and_tenant(text)",
    "payment_change_has_event()",
    "payment_change_is_lawful()",
    "payment_event_hash(events)",
    "payment_hash(payments)",
    "payment_is_born_open()",
    "previous_release_adds_event()",
    "previous_release_gives_no_hash()",
    "previous_release_hash(events)",
    "previous_release_link(events)",
    "refuse_change()",
    "tenant_of_reference(text, uuid)",
    "webhook_attempt_change_is_lawful()",
    "webhook_delivery_change_is_lawful()",
)
# These have a search_path already, but without the temporary schema, which then comes first.
OF_ATTEMPTS = (
    "make_webhook_attempts(timestamptz)",
    "wall_webhook_attempts(text)",
)
# The function that runs with its owner's rights also names the schema of everything that it reads.
# contract: not now, but each week partitions past their retention time, as in 0009
OF_OWNER = """
    CREATE OR REPLACE FUNCTION public.turn_webhook_attempts(OUT made integer, OUT dropped integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    SET lock_timeout = '200ms' AS $$
    DECLARE
        before text := coalesce(current_setting('maramoja.tenant', true), '');
        week timestamptz := date_trunc('week', now(), 'UTC');
        part record;
        is_needed boolean;
    BEGIN
        made := 0;
        dropped := 0;
        FOR ahead IN 0..4 LOOP
            made := made
                + public.make_webhook_attempts(week + ahead * interval '7 days')::integer;
        END LOOP;
        PERFORM set_config('maramoja.tenant', '*', true);
        FOR part IN
            SELECT c.oid::regclass AS name,
                   (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''([^'']+)''\\)'))[1]::uuid AS low,
                   (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \\(''([^'']+)''\\)'))[1]::uuid AS high
            FROM pg_catalog.pg_inherits JOIN pg_catalog.pg_class c ON c.oid = inhrelid
            WHERE inhparent = 'public.webhook_attempts'::regclass
        LOOP
            CONTINUE WHEN part.high IS NULL
                OR part.high > public.uuid7_floor(now() - interval '30 days');
            -- What is told again is looked at until it has ended.
            SELECT EXISTS (
                SELECT FROM public.webhook_deliveries
                WHERE id < part.high AND (part.low IS NULL OR id >= part.low)
                  AND (status = 'pending' OR lease_until > now())
            ) INTO is_needed;
            CONTINUE WHEN is_needed;
            BEGIN
                EXECUTE format('DROP TABLE %s', part.name);
                dropped := dropped + 1;
            EXCEPTION WHEN lock_not_available THEN
                NULL;  -- Next time.
            END;
        END LOOP;
        PERFORM set_config('maramoja.tenant', before, true);
    END $$
"""
# Called for each field of a hash. PostgreSQL inlines such a function only if it has no SET. In this form
# (a SQL body), PostgreSQL looks up the names once, when the function is created.
EXPRESSIONS = (
    """
    CREATE OR REPLACE FUNCTION chain_field(value text) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN coalesce(char_length(value)::text || ':' || value, '-')
    """,
    """
    CREATE OR REPLACE FUNCTION chain_time(value timestamptz) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN trunc(extract(epoch FROM value) * 1000000)::text
    """,
    """
    CREATE OR REPLACE FUNCTION uuid7_floor(at timestamptz) RETURNS uuid LANGUAGE sql STABLE
    RETURN (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
    """,
)
# Functions that our role's own statements call, or that functions with its rights call.
CALLED = (
    "audit_entry_hash(audit_entries)",
    "chain_field(text)",
    "chain_time(timestamptz)",
    "key_and_tenant(text)",
    "payment_event_hash(events)",
    "payment_hash(payments)",
    "previous_release_hash(events)",
    "previous_release_link(events)",
    "tenant_of_reference(text, uuid)",
)
ANYBODYS = (*FUNCTIONS, "chain_field(text)", "chain_time(timestamptz)", "uuid7_floor(timestamptz)")
# Only the owner of a database or a schema can revoke rights to it. If that is another role, `flask doctor`
# lists the rights that are left.
NO_TEMPORARY_OBJECTS = """
    DO $$ BEGIN
        IF EXISTS (
            SELECT FROM pg_database
            WHERE datname = current_database() AND pg_has_role(datdba, 'USAGE')
        ) THEN
            EXECUTE format('REVOKE CREATE, TEMPORARY ON DATABASE %I FROM {role}', current_database());
        END IF;
        IF EXISTS (
            SELECT FROM pg_namespace WHERE nspname = 'public' AND pg_has_role(nspowner, 'USAGE')
        ) THEN
            REVOKE CREATE ON SCHEMA public FROM {role};
        END IF;
    END $$
"""


def upgrade() -> None:
    for statement in (*EXPRESSIONS, OF_OWNER):
        op.execute(statement)
    for function in (*FUNCTIONS, *OF_ATTEMPTS):
        op.execute(f"ALTER FUNCTION public.{function} SET search_path = {PATH}")
    op.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    for function in ANYBODYS:
        op.execute(f"REVOKE EXECUTE ON FUNCTION public.{function} FROM PUBLIC")
    op.execute(NO_TEMPORARY_OBJECTS.format(role="PUBLIC"))
    if (role := _application_role()) is not None:
        op.execute(NO_TEMPORARY_OBJECTS.format(role=role))
        for function in CALLED:
            op.execute(f"GRANT EXECUTE ON FUNCTION public.{function} TO {role}")


def downgrade() -> None:
    # Temporary tables stay refused: our code makes none.
    if (role := _application_role()) is not None:
        for function in CALLED:
            op.execute(f"REVOKE EXECUTE ON FUNCTION public.{function} FROM {role}")
    for function in ANYBODYS:
        op.execute(f"GRANT EXECUTE ON FUNCTION public.{function} TO PUBLIC")
    op.execute("ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC")
    for function in FUNCTIONS:
        op.execute(f"ALTER FUNCTION public.{function} RESET search_path")
    for function in OF_ATTEMPTS:
        op.execute(f"ALTER FUNCTION public.{function} SET search_path = pg_catalog, public")
    revisions = op.get_context().script
    hashes = revisions.get_revision('0004').module.HASHES
    attempts = revisions.get_revision('0009').module.FUNCTIONS
    for statement in (*hashes[:2], *attempts[:2]):
        op.execute(statement.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))


def _application_role() -> str | None:
    wall = op.get_context().script.get_revision('0002').module
    role: str | None = wall.application_role()
    return role
