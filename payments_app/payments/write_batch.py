"""What one transaction writes about several payments: a statement for each table, not each row.

The payments may be several tenants'. A row is inserted only if its payment has the same tenant, in
one statement: no row can be added to another tenant's payment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import Insert, Table, bindparam, insert, select, update
from sqlalchemy.orm import Session

from payments_app.kernel.database import Base
from payments_app.payments.model import Payment, ProviderExchange
from payments_app.webhooks.model import PaymentEvent

# Tables, not models: one statement text for any number of rows, sent at once. For models SQLAlchemy
# fetches each row's id, with a text that grows with the rows and that psycopg parses each time; in
# a worker that cost as much as the provider's exchange.
_PAYMENTS: Final[Table] = Base.metadata.tables[Payment.__tablename__]
_EXCHANGES: Final[Table] = Base.metadata.tables[ProviderExchange.__tablename__]
_EVENTS: Final[Table] = Base.metadata.tables[PaymentEvent.__tablename__]
_CLOSE: Final = update(_EXCHANGES).where(
    _EXCHANGES.c.payment_id == bindparam("of_payment"),
    _EXCHANGES.c.generation == bindparam("of_generation"),
)


@dataclass
class WriteBatch:
    """`now`: the database's time for all of these writes.

    `events` and `exchanges` are rows to be added.
    """

    session: Session
    now: datetime
    events: list[dict[str, Any]] = field(default_factory=list)
    exchanges: list[dict[str, Any]] = field(default_factory=list)

    def write(self) -> None:
        """Evidence first: the database refuses a final payment without it."""
        self._add(_EXCHANGES, self.exchanges)
        self.session.flush()
        self._add(_EVENTS, self.events)

    def close_submissions(self, outcomes: list[dict[str, Any]]) -> None:
        """Close the open rows with their outcomes: `of_payment`, `of_generation`, and columns."""
        if not outcomes:
            return
        closed = self.session.connection().execute(_CLOSE, outcomes).rowcount
        if closed != len(outcomes):
            raise LookupError("a submission was sent that had not been written down")

    def _add(self, table: Table, rows: list[dict[str, Any]]) -> None:
        """Insert rows with the same columns. LookupError if one's payment isn't its tenant's."""
        if not rows:
            return
        statement = _of_their_payments(table, tuple(rows[0]))
        added = self.session.connection().execute(statement, rows).rowcount
        if added != len(rows):
            raise LookupError(f"a row for {table.name} is of another tenant than its payment")
        rows.clear()


@cache
def _of_their_payments(table: Table, columns: tuple[str, ...]) -> Insert:
    given = [bindparam(name, type_=table.c[name].type) for name in columns]
    row = select(*given).where(
        _PAYMENTS.c.id == bindparam("payment_id"),
        # Not `=`: on a small table PostgreSQL would choose an index of the tenant's payments, and
        # the prepared statement would read all of them for each row from then on.
        _PAYMENTS.c.tenant_id.is_not_distinct_from(bindparam("tenant_id")),
    )
    statement = insert(table).from_select(columns, row, include_defaults=False)
    return statement.execution_options(preserve_rowcount=True)
