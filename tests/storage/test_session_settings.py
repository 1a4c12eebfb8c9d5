"""Settings of the role or of the database change nothing in the gateway's sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from flask import Flask
from sqlalchemy import make_url, text

from devstack.postgres_server import PostgresServer
from payments_app.kernel.database import db, snapshot
from payments_app.kernel.session_settings import CLIENT_ENCODING, SESSION, TIMEOUTS, asking_for
from tests.builders import ScriptedProvider, a_tenant, an_accepted_payment, rails_of

# For each setting a value that would break the gateway.
BENT = {
    "search_path": "nowhere",
    "maramoja.tenant": "*",
    "row_security": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "exit_on_error": "on",
    "idle_session_timeout": "1",
    "jit": "on",
    "timezone": "Asia/Tokyo",
    "datestyle": "SQL, DMY",
    "intervalstyle": "iso_8601",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "statement_timeout": "1",
    "lock_timeout": "1",
    "idle_in_transaction_session_timeout": "1",
    "client_encoding": "latin1",
    "synchronous_commit": "off",
}
WANTED = {
    **SESSION,
    **TIMEOUTS,
    "client_encoding": CLIENT_ENCODING,
    "synchronous_commit": "on",
}
WHOSE = {
    "role": "ROLE maramoja_app",
    "role in the database": "ROLE maramoja_app IN DATABASE {database}",
    "database": "DATABASE {database}",
    "everybody": "ROLE ALL IN DATABASE {database}",
}
Bend = Callable[..., None]


@pytest.fixture
def bend(app: Flask, postgres_server: PostgresServer, database_name: str) -> Iterator[Bend]:
    """Sets a setting for a role or database, as a role that may; resets all at the end."""

    def connected(url: str) -> psycopg.Connection:
        return psycopg.connect(url, autocommit=True, **asking_for({**TIMEOUTS, **SESSION}, url))

    def bend_one(name: str, value: str, whose: str = "role") -> None:
        # A plain role may set its own settings, except parameters that PostgreSQL doesn't know.
        url = postgres_server.administrator_url(database_name)
        if whose.startswith("role") and "." not in name:
            url = postgres_server.application_url(database_name)
        with connected(url) as connection:
            place = WHOSE[whose].format(database=database_name)
            connection.execute(f"ALTER {place} SET {name} = '{value}'".encode())

    yield bend_one
    with connected(postgres_server.administrator_url(database_name)) as administrator:
        for place in WHOSE.values():
            administrator.execute(
                f"ALTER {place.format(database=database_name)} RESET ALL".encode()
            )
    with app.app_context():
        db.engine.dispose()


def now(name: str) -> str:
    """The setting in a new connection of the gateway. Timeouts come with the unit that fits."""
    db.engine.dispose()
    question = "SELECT coalesce((SELECT setting FROM pg_settings WHERE lower(name) = :name), current_setting(:name))"
    with snapshot() as connection:
        return str(connection.scalar(text(question), {"name": name}))


def test_each_setting_that_is_named_is_bent_here() -> None:
    assert set(BENT) == set(WANTED)


@pytest.mark.parametrize("whose", WHOSE)
@pytest.mark.parametrize("name", BENT)
def test_a_new_connection_has_what_it_relies_on(bend: Bend, name: str, whose: str) -> None:
    bend(name, BENT[name], whose)
    assert now(name).lower() == WANTED[name].lower()


@pytest.mark.parametrize(("value", "has"), [("local", "on"), ("remote_apply", "remote_apply")])
def test_a_commit_is_confirmed_no_earlier_and_a_stronger_word_stays(
    bend: Bend, value: str, has: str
) -> None:
    bend("synchronous_commit", value)
    assert now("synchronous_commit") == has


def test_what_else_the_address_asks_for_it_gets(app: Flask) -> None:
    """E.g. a role to switch to, where each person has a login of their own."""
    address = (
        "postgresql+psycopg:///x?options=-c%20role%3Dmaramoja_owner%20-c%20search_path%3Dnowhere"
    )
    options = asking_for(SESSION, address)["options"]
    assert options.startswith("-c role=maramoja_owner -c search_path=nowhere -c ")
    url = app.extensions["maramoja"].settings.database_url.replace("+psycopg", "")
    named = make_url(url).update_query_dict({"options": "-c geqo=off -c jit=on"})
    asked = asking_for(SESSION, named.render_as_string(hide_password=False))
    with psycopg.connect(url, **asked) as one:
        shown = [one.execute(f"SHOW {name}".encode()).fetchone() for name in ("geqo", "jit")]
    assert shown == [("off",), ("off",)]


def test_with_everything_bent_a_payment_is_accepted(app: Flask, bend: Bend) -> None:
    for name, value in BENT.items():
        bend(name, value)
    db.engine.dispose()
    a_tenant()
    assert an_accepted_payment(rails_of(app, ScriptedProvider())).payment_id


def test_after_a_transaction_the_connection_still_has_it(bend: Bend) -> None:
    """It is set on connect, outside of any transaction, so no rollback undoes it."""
    bend("synchronous_commit", "off")
    db.engine.dispose()
    a_tenant()
    with snapshot() as connection:
        assert connection.scalar(text("SELECT current_setting('synchronous_commit')")) == "on"
