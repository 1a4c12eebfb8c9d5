"""One table of events: a payment's history is its outbox and its feed.

The webhook events' columns move to the payments' events, and so do the events that belong to no payment.
The publisher sets an event's position, data and hash. The previous release still works, while both run and
after a rollback: `payment_events` and `webhook_events` are views now, with the columns that it expects. The
next release removes them and everything named `previous_release`.

Revision ID: 0014
"""

from alembic import op

revision = '0014'
down_revision = '0013'

# Locks all tables at once or none, because other transactions lock them in other orders. Each try takes less than
# a second, so that it ends before PostgreSQL's deadlock check, which could cancel another transaction. `tenants`
# and `payments` too, because the dropped table refers to them.
LOCK = """
    DO $$ BEGIN
        FOR attempt IN 1..60 LOOP
            BEGIN
                LOCK TABLE tenants, payments, {tables} IN ACCESS EXCLUSIVE MODE;
                RETURN;
            EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                PERFORM pg_sleep(0.2 * random());
            END;
        END LOOP;
        RAISE EXCEPTION 'the tables are in use: start it again' USING ERRCODE = 'lock_not_available';
    END $$
"""
# The advisory lock stops the publisher: its number is "feed".
LOCKS = (
    "SELECT set_config('maramoja.tenant', '*', true)",
    # The time grows with the number of events, and all other transactions wait.
    "SET LOCAL statement_timeout = 0",
    "SET LOCAL work_mem = '128MB'",
    "SET LOCAL maintenance_work_mem = '256MB'",
    "SELECT pg_advisory_xact_lock(1717921124)",
    "SET LOCAL lock_timeout = '500ms'",
    LOCK.format(tables="payment_events, webhook_events, webhook_deliveries"),
)
# (kind of object, its name with the old table's name, and with the new table's)
NAMES = (
    ("CONSTRAINT", "pk_payment_events", "pk_events"),
    ("CONSTRAINT", "uq_payment_events_payment_id_sequence", "uq_events_payment_id_sequence"),
    ("CONSTRAINT", "ck_payment_events_sequence_positive", "ck_events_sequence_positive"),
    ("CONSTRAINT", "fk_payment_events_payment_id_payments", "fk_events_payment_id_payments"),
    ("CONSTRAINT", "fk_payment_events_tenant_id_tenants", "fk_events_tenant_id_tenants"),
)
# Columns that only an event of a payment has.
OF_PAYMENT = ("payment_id", "sequence", "status", "stage", "actor")
OLD_RULES = (
    "DROP TRIGGER payment_events_are_news ON payment_events",
    "DROP TRIGGER payment_events_chained ON payment_events",
    "DROP TRIGGER payment_events_append_only ON payment_events",
    "DROP FUNCTION payment_event_is_news()",
    "DROP FUNCTION payment_event_is_chained()",
)
# An event from before there were webhooks has no webhook event: it was never sent, and is not sent now.
FILL = (
    # These indexes are built again after the rows are written, which is faster than an entry for each row.
    "ALTER TABLE events DROP CONSTRAINT pk_events",
    "ALTER TABLE events DROP CONSTRAINT uq_events_payment_id_sequence",
    """
    UPDATE events e
    SET mode = p.mode, event_id = coalesce(w.id, gen_random_uuid()), position = w.position,
        feed_data = CASE WHEN w.number IS NULL THEN convert_to('{}', 'UTF8') ELSE w.data END
    FROM events o
    JOIN payments p ON p.id = o.payment_id
    LEFT JOIN webhook_events w ON w.payment_id = o.payment_id AND w.sequence = o.sequence
    WHERE o.id = e.id
    """,
    """
    INSERT INTO events (event_id, tenant_id, mode, type, position, feed_data, created_at)
    SELECT id, tenant_id, mode, type, position, coalesce(data, convert_to('{}', 'UTF8')), created_at
    FROM webhook_events WHERE payment_id IS NULL ORDER BY number
    """,
    """
    UPDATE webhook_deliveries d SET event_number = e.id
    FROM webhook_events w JOIN events e ON e.event_id = w.id WHERE w.number = d.event_number
    """,
)
CHECKS = {
    "of_payment_is_whole": f"num_nulls({', '.join(OF_PAYMENT)}) IN (0, 5)",
    "of_no_payment_is_published": "payment_id IS NOT NULL OR feed_data IS NOT NULL AND hash IS NULL",
    "published_is_whole": "position IS NULL OR feed_data IS NOT NULL",
    "published_is_chained": "payment_id IS NULL OR feed_data IS NULL OR hash IS NOT NULL",
    "hash_has_link": "(hash IS NULL) = (previous_hash IS NULL)",
}
INDEXES = (
    """
    ALTER TABLE events ADD CONSTRAINT pk_events PRIMARY KEY (id),
        ADD CONSTRAINT uq_events_payment_id_sequence UNIQUE (payment_id, sequence),
        ADD CONSTRAINT uq_events_tenant_id_mode_position UNIQUE (tenant_id, mode, position)
    """,
    "CREATE INDEX ix_events_unpublished ON events (id) WHERE feed_data IS NULL",
    "CREATE INDEX ix_events_time ON events (tenant_id, mode, created_at)",
)
RULES = (
    """
    CREATE TRIGGER events_never_removed BEFORE DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION refuse_change()
    """,
    # Not called for a payment's first event, so that it costs nothing there.
    """
    CREATE FUNCTION event_follows_another() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM events WHERE payment_id = NEW.payment_id AND sequence = NEW.sequence - 1
        ) THEN
            RAISE EXCEPTION 'event % has nothing before it to be linked to', NEW.sequence
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER events_follow_another BEFORE INSERT ON events
    FOR EACH ROW WHEN (NEW.sequence > 1) EXECUTE FUNCTION event_follows_another()
    """,
    """
    CREATE FUNCTION event_is_published_already() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'the publisher gives an event of a payment its position, words and hash'
            USING ERRCODE = 'restrict_violation';
    END $$
    """,
    """
    CREATE TRIGGER events_begin_unpublished BEFORE INSERT ON events
    FOR EACH ROW WHEN (
        NEW.payment_id IS NOT NULL
        AND num_nonnulls(NEW.position, NEW.feed_data, NEW.previous_hash, NEW.hash) > 0
    ) EXECUTE FUNCTION event_is_published_already()
    """,
    # An event is published once, with all its fields at once; nothing else of it ever changes.
    """
    CREATE FUNCTION event_change_is_lawful() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        before events := NEW;
    BEGIN
        before.position := OLD.position;
        before.feed_data := OLD.feed_data;
        before.previous_hash := OLD.previous_hash;
        before.hash := OLD.hash;
        IF OLD.feed_data IS NOT NULL OR NEW.feed_data IS NULL OR NEW.position IS NULL
           OR before IS DISTINCT FROM OLD
           OR (OLD.hash IS NOT NULL
               AND (OLD.hash, OLD.previous_hash) IS DISTINCT FROM (NEW.hash, NEW.previous_hash)) THEN
            RAISE EXCEPTION 'an event is published once and never changes'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER events_lawful BEFORE UPDATE ON events
    FOR EACH ROW EXECUTE FUNCTION event_change_is_lawful()
    """,
)
# `table`: where a change of status looks for its event. The query must not use an index on the tenant's events:
# a plan that is made while there are few events stays in use later.
HAS_EVENT = """
    CREATE OR REPLACE FUNCTION payment_change_has_event() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM {table}
            WHERE payment_id = NEW.id AND tenant_id {is} NEW.tenant_id AND status = NEW.status
              AND transaction_id = (pg_current_xact_id()::text)::bigint
        ) THEN
            RAISE EXCEPTION 'a change of status needs its event in the same transaction'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NULL;
    END $$
    """
# What an event is linked to, and the hash that it has or will have: both follow from rows that never change.
# The previous release expects a hash on every event.
HASHES = (
    """
    CREATE FUNCTION previous_release_link(e events) RETURNS bytea LANGUAGE plpgsql STABLE AS $$
    DECLARE
        linked_to bytea := e.previous_hash;
    BEGIN
        IF linked_to IS NULL AND e.sequence = 1 THEN
            SELECT payment_hash(p) INTO linked_to FROM payments p WHERE p.id = e.payment_id;
        ELSIF linked_to IS NULL THEN
            SELECT previous_release_hash(b) INTO linked_to FROM events b
            WHERE b.payment_id = e.payment_id AND b.sequence = e.sequence - 1;
        END IF;
        RETURN linked_to;
    END $$
    """,
    """
    CREATE FUNCTION previous_release_hash(e events) RETURNS bytea LANGUAGE plpgsql STABLE AS $$
    BEGIN
        IF e.hash IS NULL THEN
            e.previous_hash := previous_release_link(e);
            e.hash := payment_event_hash(e);
        END IF;
        RETURN e.hash;
    END $$
    """,
)
# The views use the caller's rights, and so its row-level security.
VIEWS = (
    """
    CREATE VIEW payment_events WITH (security_invoker = true) AS
    SELECT id, tenant_id, payment_id, sequence, type, status, stage, actor, request_id, data,
           transaction_id, created_at, previous_release_link(e) AS previous_hash,
           previous_release_hash(e) AS hash
    FROM events e WHERE payment_id IS NOT NULL
    """,
    """
    CREATE VIEW webhook_events WITH (security_invoker = true) AS
    SELECT id AS number, event_id AS id, tenant_id, mode, type, payment_id, sequence, position,
           feed_data AS data, created_at
    FROM events
    """,
)
# The previous release sets no mode on an event, and no hash when it publishes one. Some of its statements set the
# hash columns to null. These functions do nothing for what this release writes.
PREVIOUS_RELEASE = (
    """
    CREATE FUNCTION previous_release_adds_event() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO events
            (tenant_id, mode, payment_id, sequence, type, status, stage, actor, request_id, data)
        SELECT NEW.tenant_id, p.mode, NEW.payment_id, NEW.sequence, NEW.type, NEW.status, NEW.stage,
               NEW.actor, NEW.request_id, coalesce(NEW.data, '{}')
        FROM payments p WHERE p.id = NEW.payment_id
        RETURNING id, transaction_id, created_at, data
        INTO STRICT NEW.id, NEW.transaction_id, NEW.created_at, NEW.data;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER payment_events_previous_release INSTEAD OF INSERT ON payment_events
    FOR EACH ROW EXECUTE FUNCTION previous_release_adds_event()
    """,
    """
    CREATE FUNCTION previous_release_gives_no_hash() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.previous_hash := previous_release_link(NEW);
        NEW.hash := payment_event_hash(NEW);
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER events_a_previous_release_gives_no_hash BEFORE UPDATE ON events
    FOR EACH ROW
    WHEN (NEW.payment_id IS NOT NULL AND NEW.feed_data IS NOT NULL AND NEW.hash IS NULL)
    EXECUTE FUNCTION previous_release_gives_no_hash()
    """,
)
TRIGGERS = (
    "events_a_previous_release_gives_no_hash",
    "events_lawful",
    "events_begin_unpublished",
    "events_follow_another",
    "events_never_removed",
)
FUNCTIONS = (
    "previous_release_adds_event()",
    "previous_release_gives_no_hash()",
    "previous_release_hash(events)",
    "previous_release_link(events)",
    "event_change_is_lawful()",
    "event_is_published_already()",
    "event_follows_another()",
)
KEY_OF_DELIVERIES = "uq_webhook_deliveries_event_number_endpoint_id"
BACK_TO_NO_VIEWS = (
    "SET LOCAL lock_timeout = '500ms'",
    LOCK.format(tables="events, webhook_deliveries"),
    *(f"DROP TRIGGER {trigger} ON events" for trigger in TRIGGERS),
    # Events without a hash get the one that the publisher would have given them.
    """
    UPDATE events e SET previous_hash = previous_release_link(e), hash = previous_release_hash(e)
    WHERE payment_id IS NOT NULL AND hash IS NULL
    """,
    "DROP VIEW payment_events",
    "DROP VIEW webhook_events",
    *(f"DROP FUNCTION {function}" for function in FUNCTIONS),
)
BACK_TO_WEBHOOK_EVENTS = (
    """
    CREATE TABLE webhook_events (
        number bigint GENERATED ALWAYS AS IDENTITY,
        id uuid NOT NULL DEFAULT gen_random_uuid(),
        tenant_id uuid NOT NULL,
        mode text NOT NULL,
        type text NOT NULL,
        payment_id uuid,
        sequence integer,
        position bigint,
        data bytea,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        CONSTRAINT ck_webhook_events_published_is_whole CHECK (position IS NULL OR data IS NOT NULL),
        CONSTRAINT fk_webhook_events_payment_id_payments
            FOREIGN KEY (payment_id) REFERENCES payments (id),
        CONSTRAINT fk_webhook_events_tenant_id_tenants FOREIGN KEY (tenant_id) REFERENCES tenants (id),
        CONSTRAINT pk_webhook_events PRIMARY KEY (number),
        CONSTRAINT uq_webhook_events_id UNIQUE (id),
        CONSTRAINT uq_webhook_events_payment_id_sequence UNIQUE (payment_id, sequence),
        CONSTRAINT uq_webhook_events_tenant_id_mode_position UNIQUE (tenant_id, mode, position)
    )
    """,
    "CREATE INDEX ix_webhook_events_new ON webhook_events (number) WHERE data IS NULL",
    "CREATE INDEX ix_webhook_events_time ON webhook_events (tenant_id, mode, created_at)",
    # The numbers stay the same, because deliveries refer to events by number.
    """
    INSERT INTO webhook_events OVERRIDING SYSTEM VALUE
    SELECT id, event_id, tenant_id, mode, type, payment_id, sequence, position, feed_data, created_at
    FROM events
    """,
    """
    SELECT setval(pg_get_serial_sequence('webhook_events', 'number'), last_value, is_called)
    FROM events_id_seq
    """,
)
BACK_TO_PAYMENT_EVENTS = (
    "DELETE FROM events WHERE payment_id IS NULL",
    # contract: on the way down
    """
    ALTER TABLE events DROP COLUMN event_id, DROP COLUMN mode, DROP COLUMN position, DROP COLUMN feed_data
    """,
    "ALTER TABLE events DROP CONSTRAINT ck_events_of_payment_is_whole",
    "ALTER TABLE events DROP CONSTRAINT ck_events_hash_has_link",
    # contract: on the way down
    "ALTER TABLE events RENAME TO payment_events",
    # contract: on the way down
    "ALTER SEQUENCE events_id_seq RENAME TO payment_events_id_seq",
    # contract: on the way down
    "ALTER TRIGGER events_never_emptied ON payment_events RENAME TO payment_events_never_emptied",
    """
    CREATE TRIGGER payment_events_append_only BEFORE UPDATE OR DELETE ON payment_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change()
    """,
    *(f"ALTER TABLE payment_events RENAME {kind} {new} TO {old}" for kind, old, new in NAMES),
    *(
        # contract: on the way down
        f"ALTER TABLE payment_events ALTER COLUMN {column} SET NOT NULL"
        for column in (*OF_PAYMENT, "previous_hash", "hash")
    ),
    HAS_EVENT.format(**{"table": "payment_events", "is": "="}),
)


def upgrade() -> None:
    for statement in (*LOCKS, *OLD_RULES):
        op.execute(statement)
    # contract: a view of this name replaces it
    op.execute("ALTER TABLE payment_events RENAME TO events")
    # contract: no code names it
    op.execute("ALTER SEQUENCE payment_events_id_seq RENAME TO events_id_seq")
    # contract: no code names it
    op.execute("ALTER TRIGGER payment_events_never_emptied ON events RENAME TO events_never_emptied")
    for kind, old, new in NAMES:
        # contract: no code names it
        op.execute(f"ALTER TABLE events RENAME {kind} {old} TO {new}")
    for column in (*OF_PAYMENT, "previous_hash", "hash"):
        op.execute(f"ALTER TABLE events ALTER COLUMN {column} DROP NOT NULL")
    op.execute(
        "ALTER TABLE events ADD COLUMN event_id uuid, ADD COLUMN mode text,"
        " ADD COLUMN position bigint, ADD COLUMN feed_data bytea"
    )
    op.execute("ALTER TABLE webhook_deliveries DISABLE TRIGGER webhook_deliveries_lawful")
    _drop_keys_of_deliveries("webhook_events")
    for statement in FILL:
        op.execute(statement)
    # contract: a view of this name replaces it
    op.execute("DROP TABLE webhook_events")
    op.execute("DROP FUNCTION webhook_event_change_is_lawful()")
    checks = [f"ADD CONSTRAINT ck_events_{name} CHECK ({rule})" for name, rule in CHECKS.items()]
    op.execute("ALTER TABLE events ALTER COLUMN event_id SET DEFAULT gen_random_uuid()")
    # contract: event_id has a default, and previous_release_adds_event sets mode
    whole = "ALTER COLUMN event_id SET NOT NULL, ALTER COLUMN mode SET NOT NULL"
    op.execute(f"ALTER TABLE events {whole}, {', '.join(checks)}")
    for statement in INDEXES:
        op.execute(statement)
    _add_keys_of_deliveries("events", "id")
    op.execute("ALTER TABLE webhook_deliveries ENABLE TRIGGER webhook_deliveries_lawful")
    op.execute(HAS_EVENT.format(**{"table": "events", "is": "IS NOT DISTINCT FROM"}))
    for statement in (*RULES, *HASHES, *VIEWS, *PREVIOUS_RELEASE):
        op.execute(statement)
    if (role := _application_role()) is not None:
        op.execute(
            f"GRANT UPDATE (position, feed_data, previous_hash, hash) ON events TO {role}"
        )
        op.execute(f"GRANT SELECT, INSERT ON payment_events TO {role}")
        op.execute(f"GRANT SELECT, INSERT, UPDATE ON webhook_events TO {role}")


def downgrade() -> None:
    webhooks = op.get_context().script.get_revision('0006').module
    chain = op.get_context().script.get_revision('0004').module
    for statement in (*LOCKS[:5], *BACK_TO_NO_VIEWS, *BACK_TO_WEBHOOK_EVENTS):
        op.execute(statement)
    _wall_in("webhook_events")
    _drop_keys_of_deliveries("events")
    _add_keys_of_deliveries("webhook_events", "number")
    for statement in (*BACK_TO_PAYMENT_EVENTS, *chain.RULES[-2:], *webhooks.RULES[:4]):
        op.execute(statement)


def _drop_keys_of_deliveries(table: str) -> None:
    for name in (f"fk_webhook_deliveries_event_number_{table}", KEY_OF_DELIVERIES):
        op.execute(f"ALTER TABLE webhook_deliveries DROP CONSTRAINT {name}")


def _add_keys_of_deliveries(table: str, column: str) -> None:
    op.execute(
        f"ALTER TABLE webhook_deliveries ADD CONSTRAINT {KEY_OF_DELIVERIES}"
        " UNIQUE (event_number, endpoint_id),"
        f" ADD CONSTRAINT fk_webhook_deliveries_event_number_{table}"
        f" FOREIGN KEY (event_number) REFERENCES {table} ({column})"
    )


def _wall_in(table: str) -> None:
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY tenant_wall ON {table} USING"
        " (current_setting('maramoja.tenant', true) IN (tenant_id::text, '*'))"
    )
    if (role := _application_role()) is not None:
        op.execute(f"GRANT SELECT, INSERT, UPDATE ON {table} TO {role}")
        op.execute(f"REVOKE UPDATE (position, feed_data, previous_hash, hash) ON events FROM {role}")


def _application_role() -> str | None:
    wall = op.get_context().script.get_revision('0002').module
    role: str | None = wall.application_role()
    return role
