"""Attempts are stored in weekly partitions, so that purging drops a whole partition.

A partition has the attempts of the deliveries that were created in its week: their ids begin with the
time. So claiming and recording touch one partition, which follows from the delivery's id. Nothing else
changes for code that reads or writes the table, also of the previous version.

Revision ID: 0009
"""

from alembic import op

revision = '0009'
down_revision = '0008'

COLUMNS = (
    "id, tenant_id, delivery_id, generation, trigger, url, started_at, finished_at, outcome,"
    " http_status, answer, elapsed_ms"
)
TABLE = """
    CREATE TABLE webhook_attempts (
        id bigint GENERATED ALWAYS AS IDENTITY,
        tenant_id uuid NOT NULL,
        delivery_id uuid NOT NULL,
        generation integer NOT NULL,
        trigger text NOT NULL,
        url text NOT NULL,
        started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        finished_at timestamptz,
        outcome text,
        http_status integer,
        answer bytea,
        elapsed_ms integer,
        CONSTRAINT ck_webhook_attempts_closed_has_outcome CHECK ((finished_at IS NULL) = (outcome IS NULL)),
        CONSTRAINT {key},
        CONSTRAINT fk_webhook_attempts_delivery_id_webhook_deliveries
            FOREIGN KEY (delivery_id) REFERENCES webhook_deliveries (id) ON DELETE CASCADE,
        CONSTRAINT fk_webhook_attempts_tenant_id_tenants FOREIGN KEY (tenant_id) REFERENCES tenants (id)
    ) {partitioned}
"""
TRIGGER = (
    "CREATE TRIGGER webhook_attempts_lawful BEFORE UPDATE ON webhook_attempts"
    " FOR EACH ROW EXECUTE FUNCTION webhook_attempt_change_is_lawful()"
)
FUNCTIONS = (
    # The smallest id that can be made at that time.
    """
    CREATE FUNCTION uuid7_floor(at timestamptz) RETURNS uuid LANGUAGE sql STABLE AS $$
        SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0')
                || repeat('0', 20))::uuid
    $$
    """,
    # Only the owner may make and drop partitions, and the gateway's role owns nothing. It calls this
    # function, which does nothing else. The retention time is no argument, so the role can't change it.
    #
    # lock_timeout is short, because all later statements would queue behind one that waits for the lock.
    # contract: not now, but each week partitions past their retention time, as their rows were before
    """
    CREATE FUNCTION turn_webhook_attempts(OUT made integer, OUT dropped integer)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public SET lock_timeout = '200ms' AS $$
    DECLARE
        before text := coalesce(current_setting('maramoja.tenant', true), '');
        week timestamptz := date_trunc('week', now(), 'UTC');
        part record;
        is_needed boolean;
    BEGIN
        made := 0;
        dropped := 0;
        FOR ahead IN 0..4 LOOP
            made := made + make_webhook_attempts(week + ahead * interval '7 days')::integer;
        END LOOP;
        PERFORM set_config('maramoja.tenant', '*', true);
        FOR part IN
            SELECT c.oid::regclass AS name,
                   (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \\(''([^'']+)''\\)'))[1]::uuid AS low,
                   (regexp_match(pg_get_expr(c.relpartbound, c.oid), 'TO \\(''([^'']+)''\\)'))[1]::uuid AS high
            FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
            WHERE inhparent = 'public.webhook_attempts'::regclass
        LOOP
            CONTINUE WHEN part.high IS NULL OR part.high > uuid7_floor(now() - interval '30 days');
            -- What is told again is looked at until it has ended.
            SELECT EXISTS (
                SELECT FROM webhook_deliveries
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
    """,
    """
    CREATE FUNCTION make_webhook_attempts(week timestamptz) RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
    DECLARE name text := 'webhook_attempts_' || to_char(week AT TIME ZONE 'UTC', 'YYYYMMDD');
    BEGIN
        IF to_regclass('public.' || name) IS NOT NULL THEN
            RETURN false;
        END IF;
        EXECUTE format(
            'CREATE TABLE public.%I PARTITION OF public.webhook_attempts FOR VALUES FROM (%L) TO (%L)',
            name, uuid7_floor(week), uuid7_floor(week + interval '7 days'));
        PERFORM wall_webhook_attempts(name);
        RETURN true;
    EXCEPTION
        -- It lies in the one from before, or the one for all else has rows of it already.
        WHEN invalid_object_definition OR check_violation OR lock_not_available THEN
            RETURN false;
    END $$
    """,
    # A query can name a partition itself, so each one has row-level security too.
    """
    CREATE FUNCTION wall_webhook_attempts(name text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, public AS $$
    BEGIN
        EXECUTE format('ALTER TABLE public.%I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('ALTER TABLE public.%I FORCE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY tenant_wall ON public.%I USING'
            ' (current_setting(''maramoja.tenant'', true) IN (tenant_id::text, ''*''))', name);
    END $$
    """,
)
BEFORE = "webhook_attempts_before"


def upgrade() -> None:
    for statement in FUNCTIONS:
        op.execute(statement)
    for function in ("turn_webhook_attempts()", "make_webhook_attempts(timestamptz)", "wall_webhook_attempts(text)"):
        op.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
    # The existing table becomes the first partition, unchanged. It also takes the attempts of deliveries
    # that are created until next week's end. A validated CHECK proves its bound, so ATTACH needs no scan.
    connection = op.get_bind()
    end = connection.exec_driver_sql(
        "SELECT uuid7_floor(date_trunc('week', now(), 'UTC') + interval '14 days')"
    ).scalar_one()
    # From here until the commit no attempts can be written: webhooks wait, payments don't.
    op.execute(f"CREATE UNIQUE INDEX pk_{BEFORE} ON webhook_attempts (delivery_id, generation)")
    op.execute(f"ALTER TABLE webhook_attempts ADD CONSTRAINT before CHECK (delivery_id < '{end}') NOT VALID")
    op.execute("ALTER TABLE webhook_attempts VALIDATE CONSTRAINT before")
    last = connection.exec_driver_sql("SELECT coalesce(max(id), 0) + 1 FROM webhook_attempts").scalar_one()
    # contract: the new table gets its names in this same transaction, so no code sees a missing one
    op.execute("DROP TRIGGER webhook_attempts_lawful ON webhook_attempts")
    # contract: as above
    op.execute(f"ALTER TABLE webhook_attempts RENAME TO {BEFORE}")
    op.execute(f"ALTER TABLE {BEFORE} ALTER COLUMN id DROP IDENTITY")
    # contract: the key is the delivery and its generation, by which all code queries; `id` only counts
    op.execute(f"ALTER TABLE {BEFORE} DROP CONSTRAINT pk_webhook_attempts")
    op.execute(f"ALTER TABLE {BEFORE} ADD CONSTRAINT pk_{BEFORE} PRIMARY KEY USING INDEX pk_{BEFORE}")
    # contract: as above
    op.execute(f"ALTER TABLE {BEFORE} DROP CONSTRAINT uq_webhook_attempts_delivery_id_generation")
    # contract: as above
    op.execute(f"ALTER INDEX ix_webhook_attempts_age RENAME TO ix_{BEFORE}_age")
    op.execute(TABLE.format(
        key="pk_webhook_attempts PRIMARY KEY (delivery_id, generation)",
        partitioned="PARTITION BY RANGE (delivery_id)",
    ))
    op.execute("CREATE INDEX ix_webhook_attempts_age ON webhook_attempts (started_at)")
    op.execute(f"ALTER TABLE webhook_attempts ATTACH PARTITION {BEFORE} FOR VALUES FROM (MINVALUE) TO ('{end}')")
    op.execute(f"ALTER TABLE {BEFORE} DROP CONSTRAINT before")  # contract: the bound says the same
    op.execute(f"ALTER TABLE webhook_attempts ALTER COLUMN id RESTART WITH {last}")
    # For deliveries that are resent after their week was dropped, and for weeks without a partition.
    op.execute("CREATE TABLE webhook_attempts_default PARTITION OF webhook_attempts DEFAULT")
    op.execute("SELECT wall_webhook_attempts('webhook_attempts'), wall_webhook_attempts('webhook_attempts_default')")
    op.execute(TRIGGER)
    op.execute("SELECT turn_webhook_attempts()")
    _grant("webhook_attempts")
    if (role := _role()) is not None:
        op.execute(f"REVOKE ALL ON {BEFORE} FROM {role}")
        op.execute(f"GRANT EXECUTE ON FUNCTION turn_webhook_attempts() TO {role}")


def downgrade() -> None:
    op.execute("ALTER TABLE webhook_attempts RENAME TO webhook_attempts_by_week")
    for name in ("pk_webhook_attempts", "ix_webhook_attempts_age"):
        op.execute(f"ALTER INDEX {name} RENAME TO {name}_by_week")
    op.execute(TABLE.format(key="pk_webhook_attempts PRIMARY KEY (id)", partitioned=""))
    op.execute(
        "ALTER TABLE webhook_attempts ADD CONSTRAINT uq_webhook_attempts_delivery_id_generation"
        " UNIQUE (delivery_id, generation)"
    )
    op.execute("CREATE INDEX ix_webhook_attempts_age ON webhook_attempts (started_at)")
    op.execute("SELECT set_config('maramoja.tenant', '*', true)")
    op.execute(
        f"INSERT INTO webhook_attempts ({COLUMNS}) OVERRIDING SYSTEM VALUE"
        f" SELECT {COLUMNS} FROM webhook_attempts_by_week"
    )
    op.execute(
        "SELECT setval(pg_get_serial_sequence('webhook_attempts', 'id'), coalesce(max(id), 0) + 1, false)"
        " FROM webhook_attempts"
    )
    op.execute("DROP TABLE webhook_attempts_by_week")
    op.execute("SELECT wall_webhook_attempts('webhook_attempts')")
    op.execute(TRIGGER)
    _grant("webhook_attempts")
    for function in ("turn_webhook_attempts()", "make_webhook_attempts(timestamptz)", "wall_webhook_attempts(text)", "uuid7_floor(timestamptz)"):
        op.execute(f"DROP FUNCTION {function}")


def _role() -> str | None:
    role: str | None = op.get_context().script.get_revision('0002').module.application_role()
    return role


def _grant(table: str) -> None:
    if (role := _role()) is not None:
        op.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
        op.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}")
