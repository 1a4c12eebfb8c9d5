"""A refusal ends a payment only if its request is the only one that was ever sent.

It adds a column, `requests_left` (how many requests were sent), and a rule in addition to the one that
a final status needs evidence. Older code neither reads nor writes the column. If the rule refuses a
final status, that code stores nothing and polls the provider again when its lease is over.

Revision ID: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = '0010'
down_revision = '0009'

WEAK = "requests_left <= 1 OR verdict NOT IN ('REFUSED', 'NOT_SENT', 'NOT_FOUND', 'FAILED')"
# Whether the refusal may end the payment: no other request was sent under its reference, or the
# provider has answered, after the last submission, that it has no such payment.
REFUSAL_STANDS = """
    CREATE FUNCTION public.refusal_ends_payment(payment uuid, refusal bigint) RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
        SELECT NOT EXISTS (
            SELECT FROM public.provider_exchanges x
            WHERE x.payment_id = payment AND x.kind = 'submit' AND x.id <> refusal
              AND (x.verdict IS DISTINCT FROM 'NOT_SENT' OR x.http_status IS NOT NULL)
        ) OR EXISTS (
            SELECT FROM public.provider_exchanges x
            WHERE x.payment_id = payment AND x.kind = 'check' AND x.verdict = 'NOT_FOUND'
              AND x.generation > (
                  SELECT max(s.generation) FROM public.provider_exchanges s
                  WHERE s.payment_id = payment AND s.kind = 'submit'
              )
        )
    $$
"""
RULE = """
    CREATE FUNCTION public.refusal_is_of_only_request() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
    BEGIN
        IF EXISTS (
            SELECT FROM public.provider_exchanges x
            WHERE x.id = NEW.evidence_id AND x.verdict = 'REFUSED'
              AND (x.kind <> 'submit' OR NOT public.refusal_ends_payment(NEW.id, x.id))
        ) THEN
            RAISE EXCEPTION 'a refusal proves nothing about another request of this payment that left'
                USING ERRCODE = 'check_violation';
        END IF;
        RETURN NULL;
    END $$
"""
TRIGGER = """
    CREATE TRIGGER payments_refused_by_only_request AFTER UPDATE ON payments
    FOR EACH ROW WHEN (OLD.status = 'PENDING' AND NEW.status = 'FAILED')
    EXECUTE FUNCTION public.refusal_is_of_only_request()
"""


def upgrade() -> None:
    op.add_column('provider_exchanges', sa.Column('requests_left', sa.Integer(), nullable=True))
    # NOT VALID adds it without a scan; existing rows are null, so VALIDATE finds no violation.
    op.execute(
        "ALTER TABLE provider_exchanges ADD CONSTRAINT"
        f" ck_provider_exchanges_weak_verdict_is_of_one_request CHECK ({WEAK}) NOT VALID"
    )
    op.execute(
        "ALTER TABLE provider_exchanges VALIDATE CONSTRAINT"
        " ck_provider_exchanges_weak_verdict_is_of_one_request"
    )
    for statement in (REFUSAL_STANDS, RULE, TRIGGER):
        op.execute(statement)
    for function in ("refusal_ends_payment(uuid, bigint)", "refusal_is_of_only_request()"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION public.{function} FROM PUBLIC")
    wall = op.get_context().script.get_revision('0002').module
    if (role := wall.application_role()) is not None:
        op.execute(
            f"GRANT EXECUTE ON FUNCTION public.refusal_ends_payment(uuid, bigint) TO {role}"
        )


def downgrade() -> None:
    op.execute("DROP TRIGGER payments_refused_by_only_request ON payments")
    op.execute("DROP FUNCTION refusal_is_of_only_request()")
    op.execute("DROP FUNCTION refusal_ends_payment(uuid, bigint)")
    op.drop_column('provider_exchanges', 'requests_left')
