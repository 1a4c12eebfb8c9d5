"""No refusal ends a payment that the provider has shown, and a request counts as sent if it was counted.

It closes four gaps in the rule of 0010: a payment that the provider had shown, with a single "not found"
later; a request that was counted, although its response was not stored; a submission that was answered
"failed" after an earlier one; a payment accepted within 7 days after a restore, whose key may have been
used since the backup. If the rule refuses a final status, older code polls the provider again.

Revision ID: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = '0012'
down_revision = '0011'

# Whether the refusal may end the payment. Either no other request was sent under its reference, or the
# provider has answered, after the last submission, that it has no such payment, and has never shown it.
REFUSAL_STANDS = """
    CREATE OR REPLACE FUNCTION public.refusal_ends_payment(payment uuid, refusal bigint)
    RETURNS boolean
    LANGUAGE sql STABLE SET search_path = pg_catalog, public, pg_temp AS $$
        WITH exchanges AS (
            SELECT x.id, x.kind, x.generation, x.verdict,
                   x.kind = 'submit' AND (
                       x.verdict IS DISTINCT FROM 'NOT_SENT'
                       OR coalesce(x.requests_left > 0, x.http_status IS NOT NULL)
                   ) AS may_have_left
            FROM public.provider_exchanges x WHERE x.payment_id = payment
        )
        SELECT (
            NOT EXISTS (SELECT FROM exchanges x WHERE x.may_have_left AND x.id <> refusal)
            AND NOT EXISTS (
                SELECT FROM public.payments p JOIN public.tenants t ON t.id = p.tenant_id
                WHERE p.id = payment AND p.created_at >= t.restored_at
                  AND p.created_at < t.restored_at + interval '7 days'
            )
        ) OR (
            EXISTS (
                SELECT FROM exchanges x
                WHERE x.kind = 'check' AND x.verdict = 'NOT_FOUND'
                  AND x.generation > (
                      SELECT max(s.generation) FROM exchanges s WHERE s.kind = 'submit'
                  )
            )
            AND NOT EXISTS (
                SELECT FROM exchanges x
                WHERE x.verdict IN ('PENDING', 'SUCCESSFUL', 'FAILED')
                   OR x.verdict = 'DUPLICATE' AND (x.kind = 'check' OR EXISTS (
                       SELECT FROM exchanges e
                       WHERE e.may_have_left AND e.generation < x.generation
                   ))
            )
        )
    $$
"""
RULE = """
    CREATE OR REPLACE FUNCTION public.refusal_is_of_only_request() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
    BEGIN
        IF EXISTS (
            SELECT FROM public.provider_exchanges x
            WHERE x.id = NEW.evidence_id
              AND (x.verdict = 'REFUSED' AND x.kind <> 'submit'
                   OR x.verdict IN ('REFUSED', 'FAILED') AND x.kind = 'submit'
                   AND NOT public.refusal_ends_payment(NEW.id, x.id))
        ) THEN
            RAISE EXCEPTION 'a refusal proves nothing about another request of this payment that left'
                USING ERRCODE = 'check_violation';
        END IF;
        RETURN NULL;
    END $$
"""


def upgrade() -> None:
    op.add_column('tenants', sa.Column('restored_at', sa.TIMESTAMP(timezone=True), nullable=True))
    op.execute(
        "ALTER TABLE provider_exchanges ADD CONSTRAINT"
        " ck_provider_exchanges_requests_left_counted CHECK (requests_left >= 0) NOT VALID"
    )
    op.execute(
        "ALTER TABLE provider_exchanges VALIDATE CONSTRAINT"
        " ck_provider_exchanges_requests_left_counted"
    )
    op.execute(REFUSAL_STANDS)
    op.execute(RULE)


def downgrade() -> None:
    before = op.get_context().script.get_revision('0010').module
    for statement in (before.REFUSAL_STANDS, before.RULE):
        op.execute(statement.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    op.execute(
        "ALTER TABLE provider_exchanges DROP CONSTRAINT ck_provider_exchanges_requests_left_counted"
    )
    op.drop_column('tenants', 'restored_at')
