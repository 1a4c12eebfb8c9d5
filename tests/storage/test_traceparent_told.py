"""With tracing off, a payment's webhooks carry its own `traceparent` unchanged, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from flask import Flask

from payments_app.kernel import tracing
from payments_app.webhooks.endpoints import Owner
from tests.builders import (
    ScriptedProvider,
    a_caller,
    advance,
    an_accepted_payment,
    an_asker,
    an_endpoint,
    let_time_pass,
    rails_of,
)
from tests.webhooks.dispatching import deliver_due
from tests.webhooks.receiver import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def a_traceparent(digit: int) -> str:
    return f"00-{str(digit) * 32}-{str(digit) * 16}-01"


def a_told_tenant(
    app: Flask, receiver: Receiver, *traceparents: str | None
) -> dict[str, str | None]:
    """Makes a tenant with an endpoint and a payment in each trace; payment id → traceparent."""
    caller = a_caller()
    an_endpoint(Owner(caller.tenant_id, caller.mode), receiver.url)
    gateway = rails_of(app, ScriptedProvider())
    told = {}
    for traceparent in traceparents:
        context = replace(an_asker(caller=caller), traceparent=traceparent)
        told[str(an_accepted_payment(gateway, context=context).payment_id)] = traceparent
    advance(gateway)
    let_time_pass(seconds=60)
    advance(gateway)
    return told


def test_each_webhook_carries_its_own_payments_and_nobody_elses(
    app: Flask, receiver: Receiver
) -> None:
    wanted = {
        **a_told_tenant(app, receiver, a_traceparent(1), None, a_traceparent(2)),
        **a_told_tenant(app, receiver, a_traceparent(3)),
        **a_told_tenant(app, receiver, None),
    }
    deliver_due(app)

    came = [
        (one.document["data"]["payment_id"], one.headers.get("traceparent"))
        for one in receiver.received
    ]
    assert len(came) == 3 * len(wanted)
    assert dict(came) == wanted
    assert all(wanted[payment_id] == told for payment_id, told in came)
    assert tracing.here() is None
