"""The log of HTTP traffic, and the pages in which the admin API shows it and the ledger."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from simulator.clock import as_text
from simulator.database import Database, Value

_DEFAULT_LIMIT = 100


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which rows to show: those after `after`, oldest first."""

    reference_id: str | None = None
    external_id: str | None = None
    after: int = 0
    limit: int = _DEFAULT_LIMIT


@dataclass(frozen=True, slots=True)
class _View:
    select: str
    id_column: str
    has_external_id: bool


_VIEWS = {
    "ledger": _View(
        "SELECT m.id, m.at, m.reference_id, m.product, m.operation, m.api_user, m.amount,"
        " m.currency, m.party, m.external_id, m.financial_transaction_id FROM movements m",
        "m",
        has_external_id=True,
    ),
    "payments": _View(
        "SELECT c.id, c.at, c.reference_id, c.product, c.operation, c.api_user, c.environment,"
        " c.amount, c.currency, c.party, c.external_id, c.callback_url,"
        " coalesce(o.status, 'PENDING') AS status, o.reason, o.financial_transaction_id,"
        " o.at AS ended_at FROM creations c LEFT JOIN outcomes o USING (generation, reference_id)",
        "c",
        has_external_id=True,
    ),
    "requests": _View(
        "SELECT r.id, r.at, r.method, r.path, r.operation, r.reference_id, a.status, a.fault,"
        " a.at AS answered_at FROM requests r LEFT JOIN answers a ON a.request_id = r.id",
        "r",
        has_external_id=False,
    ),
    "callbacks": _View(
        "SELECT b.id, b.at, b.reference_id, b.mode, b.verb, b.url, b.body, b.answer"
        " FROM callbacks b",
        "b",
        has_external_id=False,
    ),
}

VIEWS = tuple(_VIEWS)

# Counts of one generation, each from one scan: `summary` is read rarely, not on each call.
_SUMMARY = """
SELECT
  (SELECT count(*) FROM creations WHERE generation = :g) AS accepted,
  (SELECT count(*) FROM outcomes WHERE generation = :g AND status = 'SUCCESSFUL') AS successful,
  (SELECT count(*) FROM outcomes WHERE generation = :g AND status = 'FAILED') AS failed,
  (SELECT count(*) FROM waiting WHERE generation = :g) AS pending,
  (SELECT count(*) FROM movements WHERE generation = :g) AS movements,
  (SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM movements
    WHERE generation = :g GROUP BY reference_id)) AS movements_by_reference_max,
  (SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM movements
    WHERE generation = :g AND external_id IS NOT NULL GROUP BY external_id))
    AS movements_by_external_id_max,
  (SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM requests
    WHERE generation = :g AND operation = 'create' GROUP BY reference_id))
    AS submissions_by_reference_max,
  (SELECT count(*) FROM requests WHERE generation = :g) AS requests,
  (SELECT count(*) FROM requests WHERE generation = :g AND operation = 'create') AS submissions,
  (SELECT count(*) FROM requests r JOIN answers a ON a.request_id = r.id
    WHERE r.generation = :g AND r.operation = 'create' AND a.status = 409)
    AS duplicate_references_refused,
  (SELECT count(*) FROM callbacks WHERE generation = :g) AS callbacks
"""


class Evidence:
    """The log of requests, responses and callbacks, and reads of it and of the ledger."""

    def __init__(self, database: Database, generation: Callable[[], int]) -> None:
        self._database = database
        self._generation = generation

    def note_request(
        self, now: float, *, method: str, path: str, operation: str, reference_id: str | None
    ) -> int:
        """Record a request before it is answered, as some requests are never answered."""
        return self._database.insert(
            "INSERT INTO requests (generation, at, method, path, operation, reference_id)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (self._generation(), now, method, path, operation, reference_id),
        )

    def note_answer(self, request_id: int, now: float, status: int | None, fault: str) -> None:
        """Record the response; no status if the client cannot read one."""
        self._database.insert(
            "INSERT INTO answers VALUES (?, ?, ?, ?)", (request_id, now, status, fault or None)
        )

    def nth_request(self, operation: str, reference_id: str, up_to: int | None = None) -> int:
        """How many calls of this operation were received for this payment, up to that one."""
        last = "" if up_to is None else " AND id <= ?"
        row = self._database.row(
            "SELECT count(*) AS found FROM requests"  # noqa: S608
            f" WHERE generation = ? AND reference_id = ? AND operation = ?{last}",
            (self._generation(), reference_id, operation, *([] if up_to is None else [up_to])),
        )
        return int(row["found"]) if row else 0

    def record_callback(self, now: float, row: tuple[str, str, str, str, str, str]) -> None:
        """Record a callback: reference, mode, verb, url, body, and the receiver's response."""
        self._database.insert(
            "INSERT INTO callbacks (generation, at, reference_id, mode, verb, url, body, answer)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self._generation(), now, *row),
        )

    def page(self, view_name: str, query: PageQuery) -> dict[str, object]:
        """Read rows of one view, oldest first, and the cursor of the next page."""
        view = _VIEWS[view_name]
        name = view.id_column
        conditions = [f"{name}.generation = ?", f"{name}.id > ?"]
        values: list[Value] = [self._generation(), query.after]
        if query.reference_id is not None:
            conditions.append(f"{name}.reference_id = ?")
            values.append(query.reference_id.lower())
        if query.external_id is not None and view.has_external_id:
            conditions.append(f"{name}.external_id = ?")
            values.append(query.external_id)
        rows = self._database.rows(
            f"{view.select} WHERE {' AND '.join(conditions)} ORDER BY {name}.id LIMIT ?",
            (*values, query.limit + 1),
        )
        shown = rows[: query.limit]
        more = len(rows) > query.limit
        return {
            "data": [_shown(row) for row in shown],
            "next_cursor": shown[-1]["id"] if more else None,
        }

    def summary(self) -> dict[str, object]:
        """Count what a test checks the gateway against."""
        row = self._database.row(_SUMMARY.replace(":g", str(self._generation())))
        totals = self._database.rows(
            "SELECT operation, currency, count(*) AS movements, sum(amount_minor) AS amount_minor"
            " FROM movements WHERE generation = ? GROUP BY operation, currency",
            (self._generation(),),
        )
        return {
            **(dict(row) if row else {}),
            "generation": self._generation(),
            "totals": [dict(total) for total in totals],
        }


def _shown(row: sqlite3.Row) -> dict[str, object]:
    shown = dict(row)
    for name in ("at", "ended_at", "answered_at"):
        if shown.get(name) is not None:
            shown[name] = as_text(shown[name])
    return shown
