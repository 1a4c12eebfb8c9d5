"""An event's content is hashed too; the first and the last event of a payment also cover the payment.

`content_hash` is the hash of the data that a tenant receives and of `covers`; the checkpoints hash it.
`covers` is a JSON document that the publisher writes: with the first event a hash of what the tenant sent,
with a final event the payment's outcome and a hash of the provider's response. The chain of `hash` stays as
it was: the previous release verifies it, and publishes events without either column.

Revision ID: 0017
"""

from alembic import op

revision = '0017'
down_revision = '0016'

GIVEN = "before.{0} := OLD.{0};"
LAWFUL = """
    CREATE OR REPLACE FUNCTION public.event_change_is_lawful() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
    DECLARE
        before public.events := NEW;
    BEGIN
        {given}
        IF OLD.feed_data IS NOT NULL OR NEW.feed_data IS NULL OR NEW.position IS NULL
           OR before IS DISTINCT FROM OLD
           OR (OLD.hash IS NOT NULL
               AND (OLD.hash, OLD.previous_hash) IS DISTINCT FROM (NEW.hash, NEW.previous_hash)) THEN
            RAISE EXCEPTION 'an event is published once and never changes'
                USING ERRCODE = 'restrict_violation';
        END IF;
        RETURN NEW;
    END $$
"""
BEFORE = ("position", "feed_data", "previous_hash", "hash")
NEW = ("content_hash", "covers")
# If checkpoints of content hashes exist already, a downgrade has dropped those hashes, and this records it in
# the audit trail. The detail of an entry with a checkpoint's action may have any form.
LOST = (
    "SELECT set_config('maramoja.tenant', '*', true)",
    "SET LOCAL statement_timeout = 0",
    """
    INSERT INTO audit_entries (tenant_id, actor, action, subject_type, subject_id, detail)
    SELECT tenant_id, 'system:migration', 'payment_events.uncovered', 'payment_events',
           '1-' || max(through), jsonb_build_object('through', max(through))
    FROM (
        SELECT tenant_id, CASE jsonb_typeof(detail->'through')
            WHEN 'number' THEN (detail->>'through')::numeric END AS through
        FROM audit_entries
        WHERE action = 'payment_events.sealed' AND jsonb_typeof(detail->'contents') = 'string'
    ) AS seals
    WHERE through <= (SELECT max(id) FROM events)
    GROUP BY tenant_id ORDER BY tenant_id
    """,
)
BEGIN_UNCOVERED = """
    CREATE TRIGGER events_begin_uncovered BEFORE INSERT ON events
    FOR EACH ROW WHEN (NEW.payment_id IS NOT NULL AND num_nonnulls(NEW.content_hash, NEW.covers) > 0)
    EXECUTE FUNCTION event_is_published_already()
"""


def upgrade() -> None:
    for statement in LOST:
        op.execute(statement)
    op.execute("ALTER TABLE events ADD COLUMN content_hash bytea, ADD COLUMN covers text")
    _may_give(*BEFORE, *NEW)
    op.execute(BEGIN_UNCOVERED)
    if (role := _application_role()) is not None:
        op.execute(f"GRANT UPDATE (content_hash, covers) ON events TO {role}")


def downgrade() -> None:
    op.execute("DROP TRIGGER events_begin_uncovered ON events")
    _may_give(*BEFORE)
    if (role := _application_role()) is not None:
        op.execute(f"REVOKE UPDATE (content_hash, covers) ON events FROM {role}")
    op.execute("ALTER TABLE events DROP COLUMN content_hash, DROP COLUMN covers")


def _may_give(*columns: str) -> None:
    op.execute(LAWFUL.format(given=" ".join(GIVEN.format(name) for name in columns)))


def _application_role() -> str | None:
    wall = op.get_context().script.get_revision('0002').module
    role: str | None = wall.application_role()
    return role
