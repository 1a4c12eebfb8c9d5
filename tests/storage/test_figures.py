"""The counters of engine and dispatcher, which count once the work is committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask

from payments_app.webhooks import schedule
from payments_app.webhooks.endpoints import Owner
from tests.builders import (
    ANSWERS,
    ScriptedProvider,
    a_caller,
    a_claim,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    make_due,
    rails_of,
    record,
)
from tests.metrics.figures import figures_here
from tests.webhooks.dispatching import deliver_due
from tests.webhooks.receiver import OK, Receiver, receiving

Added = Callable[..., float]


@pytest.fixture
def added() -> Added:
    """`added(name, label=…)`: by how much the counter has grown since the start of the test."""
    before = figures_here()

    def gained(name: str, **labels: str) -> float:
        return figures_here().total(name, **labels) - before.total(name, **labels)

    return gained


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def test_posts_by_what_came_of_them(
    app: Flask, receiver: Receiver, added: Added, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No second attempt is due while a slow machine makes the first ones.
    monkeypatch.setattr(schedule, "PAUSES_S", (300.0,) * len(schedule.PAUSES_S))
    caller = a_caller()
    owner = Owner(caller.tenant_id, caller.mode)
    an_endpoint(owner, receiver.url)
    an_endpoint(owner, "http://127.0.0.1:1/")
    replies = iter([(500, {}, 0.0), OK])
    receiver.reply = lambda _received: next(replies)
    an_accepted_payment(rails_of(app, ScriptedProvider()), context=an_asker(caller=caller))
    an_accepted_payment(rails_of(app, ScriptedProvider()), context=an_asker(caller=caller))
    deliver_due(app)

    for outcome, count in (("delivered", 1), ("http_error", 1), ("connection_refused", 2)):
        assert added("webhook_posts_total", outcome=outcome) == count, outcome
    assert added("webhook_post_seconds_count") == 4


def test_what_a_worker_without_its_lease_brings_home(app: Flask, added: Added) -> None:
    gateway = rails_of(app, ScriptedProvider(checks=[ANSWERS["pending"]]))
    payment_id = an_accepted_payment(gateway).payment_id
    claim = a_claim()
    make_due(payment_id, forget_lease=True)
    advance(gateway)
    assert added("fenced_writes_total") == 0

    record(claim, ANSWERS["accepted"], gateway)

    assert added("fenced_writes_total") == 1


def test_a_failure_has_its_code(app: Flask, added: Added) -> None:
    gateway = rails_of(app, ScriptedProvider(submits=[ANSWERS["declined"]]))
    an_accepted_payment(gateway)
    advance(gateway)

    assert added("payments_final_total", status="FAILED", failure_code="payer_rejected") == 1
    assert added("time_to_final_seconds_count", status="FAILED") == 1
    assert added("provider_answers_total", operation="submit", verdict="FAILED") == 1
