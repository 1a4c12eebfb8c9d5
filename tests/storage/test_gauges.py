"""The gauges match the rows; ended payments cost their queries nothing."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psycopg
import pytest
from flask import Flask
from sqlalchemy import TextClause, text

from devstack.supervisor import wait_until
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.monitoring import gauges
from payments_app.monitoring.gauges import provider_health
from payments_app.monitoring.gauges import read_gauges as look
from payments_app.payments import outbox
from payments_app.payments.telemetry import count_fenced
from payments_app.webhooks.endpoints import Owner
from tests.builders import (
    ANSWERS,
    SCRIPTED,
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    let_time_pass,
    rails_of,
)
from tests.docs.pages import blocks_of
from tests.metrics.figures import figures_here

PATIENCE_S = 30.0
QUESTIONS = {name: found for name, found in vars(gauges).items() if isinstance(found, TextClause)}
# SQL that copies an ended payment, an event and a delivery, with the triggers off.
ENDED = 20_000
COPIES = """
    INSERT INTO payments SELECT (jsonb_populate_record(p, jsonb_build_object(
        'id', gen_random_uuid(), 'reference', gen_random_uuid()))).*
    FROM payments p, generate_series(1, %s)
"""
EVENTS = """
    INSERT INTO events (tenant_id, mode, type, feed_data, position)
    SELECT e.tenant_id, e.mode, e.type, '{}', 1000 + i
    FROM (SELECT * FROM events LIMIT 1) e, generate_series(1, %s) i
"""
DELIVERIES = """
    INSERT INTO webhook_deliveries SELECT (jsonb_populate_record(NULL::webhook_deliveries,
        to_jsonb(d) || jsonb_build_object('id', gen_random_uuid(), 'event_number', 1000000 + i,
            'status', 'delivered', 'delivered_at', now()))).*
    FROM (SELECT * FROM webhook_deliveries LIMIT 1) d, generate_series(1, %s) i
"""
LATE = "UPDATE webhook_deliveries SET next_attempt_at = now() - interval '1 hour'"


def read() -> dict[str, dict[str, float]]:
    return {reading.name: dict(reading.values) for reading in look()}


@pytest.mark.usefixtures("slow_gauges")
def test_nothing_is_nought(app: Flask) -> None:
    assert app
    figures = read()

    size = figures.pop("database_size_bytes")
    assert size[""] > 1_000_000
    assert figures.pop("survey_up") == {"": 1}
    assert {number for values in figures.values() for number in values.values()} == {0}


@pytest.mark.usefixtures("unhurried", "slow_gauges")
def test_what_is_open_by_its_stage_and_age(app: Flask) -> None:
    begun = time.monotonic()
    for answer in ("accepted", "unknown"):
        gateway = rails_of(app, ScriptedProvider(submits=[ANSWERS[answer]]))
        an_accepted_payment(gateway)
        advance(gateway)
    an_accepted_payment(gateway)
    # The two submitted ones are due again in 300 s, so that they are 60 s late.
    let_time_pass(seconds=360)

    figures = read()
    took_s = time.monotonic() - begun

    stages = {"accepted": 1, "submitting": 0, "awaiting_payer": 1, "unknown": 1}
    assert figures["open_payments"] == stages
    assert figures["unknown_payments"] == {"": 1}
    assert 360 <= figures["due_lag_seconds"][""] <= 360 + took_s
    assert 60 <= figures["check_lag_seconds"][""] <= 60 + took_s
    assert 0 < figures["oldest_unknown_seconds"][""] < figures["oldest_open_payment_seconds"][""]
    assert 0 < figures["oldest_unsent_seconds"][""] < figures["oldest_unknown_seconds"][""]


@pytest.mark.usefixtures("slow_gauges")
def test_what_has_ended_is_in_none(app: Flask) -> None:
    gateway = rails_of(app, ScriptedProvider(submits=[ANSWERS["declined"]]))
    an_accepted_payment(gateway)
    advance(gateway)

    figures = read()

    assert sum(figures["open_payments"].values()) == 0
    assert figures["due_lag_seconds"] == figures["oldest_open_payment_seconds"] == {"": 0}


@pytest.mark.usefixtures("unhurried", "slow_gauges")
@pytest.mark.parametrize(
    ("answer", "word"), [("accepted", "answers"), ("unknown", "silent"), ("not_sent", "silent")]
)
def test_what_was_heard_of_a_provider(app: Flask, answer: str, word: str) -> None:
    gateway = rails_of(app, ScriptedProvider(submits=[ANSWERS[answer]]))
    an_accepted_payment(gateway)
    assert provider_health([SCRIPTED]) == {SCRIPTED: "idle"}
    advance(gateway)
    assert provider_health([SCRIPTED, "other"]) == {SCRIPTED: word, "other": "idle"}


def test_of_a_provider_nothing_is_known_while_the_database_is_away(
    make_app: Callable[..., Flask],
) -> None:
    app = make_app(database_url="postgresql+psycopg://maramoja_app@127.0.0.1:1/maramoja")
    with app.app_context():
        assert provider_health(["mtn_momo"]) == {"mtn_momo": "not known"}


@pytest.mark.usefixtures("unhurried", "slow_gauges")
def test_news_and_deliveries_until_they_are_out(app: Flask) -> None:
    caller = a_caller()
    endpoint = an_endpoint(Owner(caller.tenant_id, caller.mode)).endpoint
    gateway = rails_of(app, ScriptedProvider())
    an_accepted_payment(gateway, context=an_asker(caller=caller))
    advance(gateway)
    assert read()["unpublished_events"] == {"": 2}
    assert read()["oldest_unpublished_seconds"][""] > 0

    outbox.publish_outbox()
    figures = read()

    assert figures["unpublished_events"] == figures["oldest_unpublished_seconds"] == {"": 0}
    assert figures["webhooks_pending"] == {"": 2}
    assert figures["webhook_lag_seconds"][""] > 0
    assert _lag_once_later("sequence = 1") == 0, "the second waits for the first"
    assert _lag_once_later("sequence = 2") == 0
    with transaction(EVERY_TENANT) as session:
        session.get_one(type(endpoint), endpoint.id).disable("failing", endpoint.created_at)
    assert read()["webhooks_pending"] == {"": 0}


@pytest.mark.usefixtures("unhurried", "slow_gauges")
def test_the_runbooks_query_names_the_endpoint_of_the_lag(app: Flask) -> None:
    (block,) = blocks_of("docs/runbooks/webhook-lag.md")
    found = re.search(r'--command="(.+)"', block.text, re.DOTALL)
    assert found
    caller = a_caller()
    endpoint = an_endpoint(Owner(caller.tenant_id, caller.mode)).endpoint
    gateway = rails_of(app, ScriptedProvider())
    an_accepted_payment(gateway, context=an_asker(caller=caller))
    advance(gateway)
    outbox.publish_outbox()
    with transaction(EVERY_TENANT) as session:
        session.execute(text(LATE))
        (row,) = session.execute(text(found[1])).all()

    assert (row.endpoint, row.mode, row.due) == (endpoint.id, caller.mode, 1)
    assert read()["webhook_lag_seconds"][""] == pytest.approx(row.lag.total_seconds(), abs=60)


def _lag_once_later(which: str) -> float:
    put_off = "UPDATE webhook_deliveries SET next_attempt_at = now() + interval '1 hour' WHERE "
    with transaction(EVERY_TENANT) as session:
        session.execute(text(put_off + which))
    return read()["webhook_lag_seconds"][""]


def test_a_table_that_answers_too_late_fails_the_whole_and_leaves_nothing_stale(
    app: Flask, administrator_url: str, request: pytest.FixtureRequest
) -> None:
    assert app
    with psycopg.connect(administrator_url) as connection:
        connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        assert read() == {"survey_up": {"": 0}}
    request.getfixturevalue("slow_gauges")
    assert read()["survey_up"] == {"": 1}


@pytest.mark.usefixtures("slow_gauges", "long_lock_waits")
def test_many_who_ask_at_once_take_one_connection(app: Flask, administrator_url: str) -> None:
    """One waits for the locked table; the others give up when their turn does not come."""
    counts: list[int] = []

    def ask() -> None:
        with app.app_context():
            read()

    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    with (
        psycopg.connect(administrator_url, autocommit=True) as watcher,
        psycopg.connect(administrator_url) as holder,
    ):
        holder.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        threads = [threading.Thread(target=ask) for _ in range(4)]

        def one_is_left() -> bool:
            row = watcher.execute(waiting).fetchone()
            counts.append(row[0] if row else 0)
            return sum(thread.is_alive() for thread in threads) == counts[-1] == 1

        for thread in threads:
            thread.start()
        try:
            wait_until(
                lambda: one_is_left() or max(counts) > 1,
                what="it is not one that waits",
                limit_s=PATIENCE_S,
            )
        finally:
            holder.rollback()
            for thread in threads:
                thread.join()
    assert max(counts) == 1


def test_each_question_is_answered_by_an_index_over_what_is_open(
    app: Flask, administrator_url: str, database_url: str
) -> None:
    caller = a_caller()
    an_endpoint(Owner(caller.tenant_id, caller.mode))
    gateway = rails_of(app, ScriptedProvider(submits=[ANSWERS["declined"]]))
    an_accepted_payment(gateway, context=an_asker(caller=caller))
    advance(gateway)
    outbox.publish_outbox()
    past_the_rules = "-c session_replication_role=replica"
    with psycopg.connect(administrator_url, autocommit=True, options=past_the_rules) as filler:
        for copies in (COPIES, EVENTS, DELIVERIES):
            filler.execute(copies.encode(), [ENDED])
        # Otherwise the queries would also read index entries of rows that earlier tests deleted.
        filler.execute("VACUUM (ANALYZE, INDEX_CLEANUP ON) payments, events, webhook_deliveries")

    with psycopg.connect(database_url, options="-c maramoja.tenant=*") as connection:
        for name in sorted(QUESTIONS.keys() - {"_BOUNDED", "_SIZE"}):
            plan = plan_of(connection, QUESTIONS[name])
            for table in ("payments", "events", "webhook_deliveries"):
                assert f"Seq Scan on {table}" not in plan, (name, plan)
            # The ended rows would add thousands.
            assert pages_touched(plan) < 100, (name, plan)


def plan_of(connection: psycopg.Connection, question: TextClause) -> str:
    explained = f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF) {question.text}"
    return "\n".join(row[0] for row in connection.execute(explained.encode()))


def pages_touched(plan: str) -> int:
    found = re.search(r"^ *Buffers: shared (?:hit|read)=(\d+)(?: read=(\d+))?", plan, re.MULTILINE)
    assert found, plan
    return sum(int(pages or 0) for pages in found.groups())


def test_what_is_rolled_back_is_not_counted(app: Flask) -> None:
    assert app
    before = figures_here().total("fenced_writes_total")
    with suppress(RuntimeError), transaction(EVERY_TENANT) as session:
        count_fenced(session)
        raise RuntimeError
    assert figures_here().total("fenced_writes_total") == before
    with transaction(EVERY_TENANT) as session:
        count_fenced(session)
        assert figures_here().total("fenced_writes_total") == before
    assert figures_here().total("fenced_writes_total") == before + 1
