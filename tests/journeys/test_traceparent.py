"""With tracing off: a tenant finds its trace in our logs, from the request through the worker."""

from __future__ import annotations

import json
from uuid import uuid4

import requests

from tests.journeys.gateway import ANSWER_MAX_S, Gateway, Paid

SPAN = "00f067aa0ba902b7"


def test_the_callers_trace_stands_in_every_line_about_its_payment(gateway: Gateway) -> None:
    trace_id, key, order = uuid4().hex, str(uuid4()), gateway.order()
    answer = requests.post(
        gateway.url,
        json=order,
        headers={
            "X-API-Key": gateway.api_key,
            "Idempotency-Key": key,
            "traceparent": f"00-{trace_id}-{SPAN}-01",
        },
        timeout=ANSWER_MAX_S,
    )
    paid = Paid(key, order, answer.content)
    gateway.await_end(paid)

    written = "".join(process.log_text() for process in gateway.stack.processes.values())
    lines = [json.loads(line) for line in written.splitlines() if paid.id in line]
    # Lines about a callback belong to the callback's own request.
    lines = [line for line in lines if line["event"] != "callback.received"]
    assert {"payment.accepted", "payment.settled"} <= {line["event"] for line in lines}
    assert {line["trace_id"] for line in lines} == {trace_id}
    # The lines have no span of ours; the row's `traceparent` has the caller's.
    assert not any("span_id" in line for line in lines)
    assert gateway.row(paid)["traceparent"] == f"00-{trace_id}-{SPAN}-01"
