"""A refusal that the rule cannot read ends no payment.

The rule of 0012 checked whether the evidence was bad. A statement that sets `maramoja.tenant` to no tenant
while it runs hides all rows from the rule, and the rule then allowed the change. Now it checks that the
evidence exists and is good.

Revision ID: 0018
"""

from alembic import op

revision = '0018'
down_revision = '0017'

RULE = """
    CREATE OR REPLACE FUNCTION public.refusal_is_of_only_request() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM public.provider_exchanges x
            WHERE x.id = NEW.evidence_id
              AND (x.kind = 'submit' OR x.verdict IS DISTINCT FROM 'REFUSED')
              AND (x.kind <> 'submit' OR x.verdict NOT IN ('REFUSED', 'FAILED')
                   OR public.refusal_ends_payment(NEW.id, x.id))
        ) THEN
            RAISE EXCEPTION 'a refusal proves nothing about another request of this payment that left'
                USING ERRCODE = 'check_violation';
        END IF;
        RETURN NULL;
    END $$
"""


def upgrade() -> None:
    op.execute(RULE)


def downgrade() -> None:
    op.execute(op.get_context().script.get_revision('0012').module.RULE)
