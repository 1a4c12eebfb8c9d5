"""The simulator's SQLite file: tables, append-only triggers, one connection with one lock.

One writer is enough: the counts must be exact, and SQLite has one writer anyway.
With WAL and `synchronous=OFF` a SIGKILL loses nothing, because the kernel has the pages already.
Only a power cut could lose data.
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

Value = str | int | float | None

_STATE = """
CREATE TABLE IF NOT EXISTS clock (
    id INTEGER PRIMARY KEY CHECK (id = 1), offset_s REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS accounts (
    api_user TEXT PRIMARY KEY, api_key TEXT, callback_host TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS subscriptions (
    key TEXT NOT NULL, product TEXT NOT NULL, PRIMARY KEY (key, product)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
    token TEXT PRIMARY KEY, product TEXT NOT NULL, api_user TEXT NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS waiting (
    generation INTEGER NOT NULL, reference_id TEXT NOT NULL,
    status TEXT NOT NULL, reason TEXT, due_at REAL,
    PRIMARY KEY (generation, reference_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS waiting_due ON waiting (generation, due_at);
"""

_EVIDENCE = """
CREATE TABLE IF NOT EXISTS generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS creations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER NOT NULL, at REAL NOT NULL,
    reference_id TEXT NOT NULL, product TEXT NOT NULL, operation TEXT NOT NULL,
    api_user TEXT NOT NULL, environment TEXT NOT NULL,
    amount TEXT NOT NULL, amount_minor INTEGER NOT NULL, currency TEXT NOT NULL,
    party_type TEXT NOT NULL, party TEXT NOT NULL, external_id TEXT,
    payer_message TEXT, payee_note TEXT, callback_url TEXT, visible_at REAL NOT NULL,
    UNIQUE (generation, reference_id)
);
CREATE INDEX IF NOT EXISTS creations_external ON creations (generation, external_id);
CREATE TABLE IF NOT EXISTS outcomes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER NOT NULL, at REAL NOT NULL,
    reference_id TEXT NOT NULL, status TEXT NOT NULL, reason TEXT,
    financial_transaction_id TEXT, UNIQUE (generation, reference_id)
);
CREATE TABLE IF NOT EXISTS movements (
    id INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER NOT NULL, at REAL NOT NULL,
    reference_id TEXT NOT NULL, product TEXT NOT NULL, operation TEXT NOT NULL,
    api_user TEXT NOT NULL, amount TEXT NOT NULL, amount_minor INTEGER NOT NULL,
    currency TEXT NOT NULL, party TEXT NOT NULL, external_id TEXT,
    financial_transaction_id TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS movements_reference ON movements (generation, reference_id);
CREATE INDEX IF NOT EXISTS movements_external ON movements (generation, external_id);
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER NOT NULL, at REAL NOT NULL,
    method TEXT NOT NULL, path TEXT NOT NULL, operation TEXT NOT NULL, reference_id TEXT
);
CREATE INDEX IF NOT EXISTS requests_reference ON requests (generation, reference_id);
CREATE TABLE IF NOT EXISTS answers (
    request_id INTEGER PRIMARY KEY, at REAL NOT NULL, status INTEGER, fault TEXT
);
CREATE TABLE IF NOT EXISTS callbacks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER NOT NULL, at REAL NOT NULL,
    reference_id TEXT NOT NULL, mode TEXT NOT NULL, verb TEXT NOT NULL, url TEXT NOT NULL,
    body TEXT NOT NULL, answer TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS notifications (
    id INTEGER PRIMARY KEY AUTOINCREMENT, generation INTEGER NOT NULL, at REAL NOT NULL,
    reference_id TEXT NOT NULL, message TEXT NOT NULL, UNIQUE (generation, reference_id)
);
"""

APPEND_ONLY = (
    "generations",
    "creations",
    "outcomes",
    "movements",
    "requests",
    "answers",
    "callbacks",
    "notifications",
)

_REFUSE = """
CREATE TRIGGER IF NOT EXISTS {table}_no_{verb} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END;
"""


class Database:
    """One SQLite connection that any thread may use."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(
            path, check_same_thread=False, isolation_level=None, cached_statements=256
        )
        self._connection.row_factory = sqlite3.Row
        self._lock = threading.RLock()
        # Without recursive_triggers, INSERT OR REPLACE deletes rows and fires no delete triggers.
        self._connection.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; PRAGMA recursive_triggers=ON;"
            "PRAGMA busy_timeout=5000;" + _STATE + _EVIDENCE
        )
        for table in APPEND_ONLY:
            for verb in ("update", "delete"):
                self._connection.executescript(_REFUSE.format(table=table, verb=verb))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all statements of the block together, or none. Does not nest."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def insert(self, sql: str, values: Sequence[Value]) -> int:
        """Run an INSERT; returns the new row's id."""
        with self._lock:
            return self._connection.execute(sql, values).lastrowid or 0

    def change(self, sql: str, values: Sequence[Value] = ()) -> int:
        """Run an UPDATE or DELETE; returns how many rows it changed."""
        with self._lock:
            return self._connection.execute(sql, values).rowcount

    def row(self, sql: str, values: Sequence[Value] = ()) -> sqlite3.Row | None:
        """Read the first row, if there is one."""
        with self._lock:
            row: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
            return row

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[sqlite3.Row]:
        """Read all rows."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def close(self) -> None:
        """Close the file. Later calls raise sqlite3.ProgrammingError."""
        with self._lock:
            self._connection.close()
