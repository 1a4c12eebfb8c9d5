"""The number of statements of each request, counted so that a change that needs more is seen.

If a number becomes smaller, lower it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from redis import Redis
from sqlalchemy import event

from payments_app.kernel.database import BEGIN, db
from tests.api.http_caller import HttpCaller, an_order, await_known

# One read of the key's owner: it has no commit, and is cached for KNOWN_FOR_S.
AUTHENTICATION = ["SELECT key_and_tenant"]
# One statement in its own transaction.
ONE_STATEMENT = ["WITH tenant_scope"]


@contextmanager
def statements_of(app: Flask) -> Iterator[list[str]]:
    """The statements that the app's engine sends, each by its verb and table, and the commits."""
    sent: list[str] = []

    def on_statement(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        words = statement.replace(".", " ").replace("(", " (").split()
        table = words[2] if words[0] == "INSERT" else words[1]
        if "key_and_tenant" in words:
            table = "key_and_tenant"
        # BEGIN also sets the tenant, in the same round trip.
        if not statement.startswith(BEGIN):
            sent.append(f"{words[0]} {table}")

    def on_commit(_connection: Any) -> None:
        sent.append("COMMIT")

    with app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", on_statement)
    event.listen(engine, "commit", on_commit)
    yield sent
    event.remove(engine, "before_cursor_execute", on_statement)
    event.remove(engine, "commit", on_commit)


def warm(caller: HttpCaller) -> None:
    """Fill the process's caches, but let the cached owner of the key expire."""
    caller.post(an_order(), key=uuid4())
    await_known()


def test_a_payment_without_a_key(app: Flask, caller: HttpCaller) -> None:
    warm(caller)
    with statements_of(app) as sent:
        caller.post(an_order())

    assert sent == [*AUTHENTICATION, *ONE_STATEMENT]


def test_a_payment_with_a_key(app: Flask, caller: HttpCaller) -> None:
    warm(caller)
    with statements_of(app) as sent:
        caller.post(an_order(), key=uuid4())

    assert sent == [*AUTHENTICATION, *ONE_STATEMENT]


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_replay(app: Flask, caller: HttpCaller, redis_url: str, *, forgotten: bool) -> None:
    key = uuid4()
    caller.post(an_order(), key=key)
    await_known()
    if forgotten:
        with Redis.from_url(redis_url) as redis:
            redis.flushdb()
    with statements_of(app) as sent:
        caller.post(an_order(), key=key)

    assert sent == [*AUTHENTICATION, *ONE_STATEMENT]


def test_what_is_refused_asks_only_who_it_is(app: Flask, caller: HttpCaller) -> None:
    warm(caller)
    with statements_of(app) as sent:
        caller.post(b"{")
        caller.post({})
        caller.post(an_order(payer_message="é"))
        caller.post(an_order(), key="x")

    assert set(sent) == set(AUTHENTICATION)


def test_noise_asks_nothing(app: Flask, caller: HttpCaller) -> None:
    with statements_of(app) as sent:
        caller.get(headers={"X-API-Key": "noise"})
        caller.get(headers={"X-API-Key": None})
        caller.get("/nothing")
        caller.get("/health/live")

    assert sent == []
