"""What one transaction writes about several payments: a statement for each table, not each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, Final, TypeVar
from uuid import UUID

from sqlalchemy import Table, bindparam, insert, update
from sqlalchemy.orm import Session

from payments_app.kernel.database import Base, narrow
from payments_app.payments.model import ProviderExchange
from payments_app.webhooks.model import PaymentEvent

Row = TypeVar("Row")

# Of the tables and not of the models: one text for any number of rows, sent in one go. For models
# SQLAlchemy asks each row's id back, in a text as long as the rows are many, which psycopg reads
# anew each time; in a worker that cost as much as the provider's exchange.
_EXCHANGES: Final[Table] = Base.metadata.tables[ProviderExchange.__tablename__]
_ADD_EXCHANGES: Final = insert(_EXCHANGES)
_ADD_LINES: Final = insert(Base.metadata.tables[PaymentEvent.__tablename__])
_CLOSE: Final = update(_EXCHANGES).where(
    _EXCHANGES.c.payment_id == bindparam("of_payment"),
    _EXCHANGES.c.generation == bindparam("of_generation"),
)


@dataclass
class WriteBatch:
    """`now`: the database's time, as of which all of it is written.

    `lines` of histories and `exchanges` are rows to be added.
    """

    session: Session
    now: datetime
    lines: list[dict[str, Any]] = field(default_factory=list)
    exchanges: list[dict[str, Any]] = field(default_factory=list)

    def by_tenant(
        self, rows: Iterable[Row], tenant_of: Callable[[Row], UUID]
    ) -> Iterator[list[Row]]:
        """Each tenant's in turn. What is done with them is written behind that tenant's wall."""
        for tenant_id, theirs in groupby(sorted(rows, key=tenant_of), key=tenant_of):
            narrow(self.session, tenant_id)
            yield list(theirs)
            self.write()

    def write(self) -> None:
        """Evidence first: an end that points to none is refused."""
        self._add(_ADD_EXCHANGES, self.exchanges)
        self.session.flush()
        self._add(_ADD_LINES, self.lines)

    def close_submissions(self, outcomes: list[dict[str, Any]]) -> None:
        """Give their open rows what came back: `of_payment`, `of_generation`, and columns."""
        if not outcomes:
            return
        closed = self.session.connection().execute(_CLOSE, outcomes).rowcount
        if closed != len(outcomes):
            raise LookupError("a submission was sent that had not been written down")

    def _add(self, statement: Any, rows: list[dict[str, Any]]) -> None:
        if rows:
            self.session.connection().execute(statement, rows)
            rows.clear()
