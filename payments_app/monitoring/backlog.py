"""Overdue work: no worker runs, an account is set up wrong, or events are not published."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text

from payments_app.kernel.clock import utc_now
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.providers.failures import FAILURES, Actor

# Due work is claimed within a second or two.
_WORK: Final = "clock_timestamp() - interval '1 minute'"
# Checkpoints are written each minute, and wait for open transactions.
_SEALS: Final = "clock_timestamp() - interval '10 minutes'"
# A status check may wait for its account's rate, or for as long as a provider's Retry-After: that
# no worker runs shows in that no exchange has finished.
_ANSWERED: Final = "clock_timestamp() - interval '6 minutes'"
_OVERDUE: Final = text(f"""
SELECT (SELECT count(*) FROM payments WHERE status = 'PENDING' AND next_action_at < {_WORK}
        AND coalesce(lease_until, next_action_at) < {_WORK}
        AND (next_step = 'submit' OR NOT EXISTS (
            SELECT FROM (SELECT finished_at FROM provider_exchanges ORDER BY id DESC LIMIT 100) x
            WHERE x.finished_at > {_ANSWERED}))),
       (SELECT count(*) FROM events WHERE feed_data IS NULL AND created_at < {_WORK}),
       (SELECT count(*) FROM events WHERE payment_id IS NOT NULL AND created_at < {_SEALS}
        AND id > coalesce((SELECT (detail->>'through')::bigint FROM audit_entries
                           WHERE action = 'payment_events.sealed' ORDER BY id DESC LIMIT 1), 0))
""")  # noqa: S608  constants


# A payment is sent within seconds, a payer has minutes, a working provider knows within hours.
UNSENT_LONG_S: Final = 300.0
OPEN_LONG_S: Final = 86_400.0
REFUSED_WITHIN: Final = timedelta(days=1)
_LINGERING: Final = text("""
SELECT t.slug, p.provider, p.stage = 'accepted' AS is_unsent, count(*) AS payments,
       extract(epoch FROM clock_timestamp() - min(p.created_at))::float AS oldest_s
FROM payments p JOIN tenants t ON t.id = p.tenant_id
WHERE p.status = 'PENDING' AND t.held_at IS NULL
  AND p.created_at < clock_timestamp() - make_interval(
      secs => CASE WHEN p.stage = 'accepted' THEN :unsent_s ELSE :open_s END)
GROUP BY 1, 2, 3 ORDER BY oldest_s DESC
""")
# By ids, which begin with the time: nothing older is read.
_REFUSED: Final = text("""
SELECT t.slug, p.provider, p.failure_code, p.failure_provider_code, count(*) AS payments
FROM payments p JOIN tenants t ON t.id = p.tenant_id
WHERE p.id > :since AND p.status = 'FAILED' AND p.failure_code = ANY(:codes)
GROUP BY 1, 2, 3, 4 ORDER BY payments DESC
""")


class Lingering(NamedTuple):
    """A tenant's open payments at a provider: unsent for minutes, or sent and open for a day."""

    slug: str
    provider: str
    is_unsent: bool
    payments: int
    oldest_s: float


class Refused(NamedTuple):
    """A tenant's recent payments that failed because of the account's setup."""

    slug: str
    provider: str
    failure_code: str
    provider_code: str | None
    payments: int


class Overdue(NamedTuple):
    """How many: unprocessed due payments, unpublished events, events without a checkpoint."""

    payments: int
    events: int
    seals: int


def overdue_work() -> Overdue:
    """Count the work that waits for longer than it ever should."""
    with transaction(EVERY_TENANT) as session:
        return Overdue(*session.execute(_OVERDUE).one())


def lingering_payments() -> list[Lingering]:
    """The oldest first. Without held tenants: their payments wait for the release."""
    values = {"unsent_s": UNSENT_LONG_S, "open_s": OPEN_LONG_S}
    with transaction(EVERY_TENANT) as session:
        return [Lingering(*row) for row in session.execute(_LINGERING, values)]


def refused_by_setup() -> list[Refused]:
    """Of the last day, by what the operator must fix: most payments first."""
    since_ms = int((utc_now() - REFUSED_WITHIN).timestamp() * 1000)
    codes = [code.value for code, meaning in FAILURES.items() if meaning.actor is Actor.OPERATOR]
    values = {"since": UUID(int=since_ms << 80), "codes": codes}
    with transaction(EVERY_TENANT) as session:
        return [Refused(*row) for row in session.execute(_REFUSED, values)]
