"""Errors of PostgreSQL that are not about the rows, so that the same statement may work later."""

from __future__ import annotations

import contextlib

import pytest
from psycopg import OperationalError, errors
from sqlalchemy.exc import DBAPIError, InternalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from payments_app.kernel.postgres import is_transient

TRANSIENT = {
    "08006": "a connection that was lost",
    "25P03": "a transaction that stood still: its process was stopped",
    "25P04": "a transaction that took too long",
    "40001": "a serialization failure",
    "40P01": "a deadlock",
    "53300": "too many connections",
    "55P03": "a lock that was not to be had",
    "57014": "a statement that took too long",
    "57P01": "a server that is shut down",
    "57P02": "a server that has crashed",
    "57P03": "a server that starts",
    "57P05": "a session that was idle for too long",
}
ABOUT_ROWS = {
    "22021": "a NUL in a text",
    "22P02": "a text that is no number",
    "23505": "a second row with the same key",
    "23514": "a check that refuses",
    "25006": "a transaction that may only read",
    "25P02": "a statement after an error",
    "42501": "a right that is missing",
    "42P01": "a table that is missing",
    "P0001": "a trigger that refuses",
}


def of(sqlstate: str) -> DBAPIError:
    """The error as SQLAlchemy raises it; psycopg has no class for some newer sqlstates."""
    known = type("Unknown", (errors.InternalError,), {"sqlstate": sqlstate})
    with contextlib.suppress(KeyError):
        known = errors.lookup(sqlstate)
    return InternalError("UPDATE payments", {}, known("said so"))


@pytest.mark.parametrize("sqlstate", TRANSIENT)
def test_what_says_nothing_about_the_rows(sqlstate: str) -> None:
    assert is_transient(of(sqlstate)), TRANSIENT[sqlstate]


@pytest.mark.parametrize("sqlstate", ABOUT_ROWS)
def test_what_will_be_refused_again(sqlstate: str) -> None:
    assert not is_transient(of(sqlstate)), ABOUT_ROWS[sqlstate]


def test_what_has_no_sqlstate() -> None:
    assert is_transient(PoolTimeout())
    lost = DBAPIError.instance("COMMIT", {}, OperationalError("lost"), OperationalError)
    assert isinstance(lost, Exception)
    assert is_transient(lost)
    assert not is_transient(ValueError())
