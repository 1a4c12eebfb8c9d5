"""What should have been done by now: signs that no worker, or no beat, is running."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import text

from payments_app.kernel.database import EVERY_TENANT, transaction

# What is due is taken up within a second or two.
_WORK: Final = "clock_timestamp() - interval '1 minute'"
# Seals come each minute, and wait for transactions that are open.
_SEALS: Final = "clock_timestamp() - interval '10 minutes'"
_OVERDUE: Final = text(f"""
SELECT (SELECT count(*) FROM payments WHERE status = 'PENDING' AND next_action_at < {_WORK}
        AND coalesce(lease_until, next_action_at) < {_WORK}),
       (SELECT count(*) FROM webhook_events WHERE data IS NULL AND created_at < {_WORK}),
       (SELECT count(*) FROM payment_events WHERE created_at < {_SEALS}
        AND id > coalesce((SELECT (detail->>'through')::bigint FROM audit_entries
                           WHERE action = 'payment_events.sealed' ORDER BY id DESC LIMIT 1), 0))
""")  # noqa: S608  constants


class Overdue(NamedTuple):
    """How many: payments that nobody acts on, events not published, events not sealed."""

    payments: int
    events: int
    seals: int


def overdue_work() -> Overdue:
    """Count what waits for longer than it ever should."""
    with transaction(EVERY_TENANT) as session:
        return Overdue(*session.execute(_OVERDUE).one())
