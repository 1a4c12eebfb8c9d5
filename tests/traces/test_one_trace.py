"""One trace from the request to the webhook, on the whole stack, also after a worker's death."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import requests

from devstack.supervisor import wait_until
from tests.journeys.gateway import ANSWER_MAX_S, PATIENCE_S, TENANT, Gateway, Paid
from tests.journeys.leaks import found_in, secrets_of
from tests.journeys.own_account import OwnAccount, give, opened_at
from tests.shape.source_tree import ROOT
from tests.traces.collector import Collector, Exported
from tests.webhooks.receiver import Received, Receiver

REQUEST = "POST /api/v1/payments"
POST = "webhook post"
# Each process exports by itself: one process's spans say nothing of another's.
STEPS = {"payment submit", "mtn_momo submit", "payment check", "mtn_momo check"}
CALLER_SPAN = "00f067aa0ba902b7"
# Text of a caller. Masking, the second guard, would let it pass.
WORDS = "a-shirt-nobody-may-know-of"


def new_trace() -> str:
    return secrets.token_hex(16)


def pay(gateway: Gateway, trace_id: str, *, key: str | None = None, **order: Any) -> Paid:
    """A payment that was requested in the caller's trace."""
    document, key = {**gateway.order(), **order}, key or str(uuid4())
    answer = requests.post(
        gateway.url,
        json=document,
        headers={
            "X-API-Key": gateway.api_key,
            "Idempotency-Key": key,
            "traceparent": f"00-{trace_id}-{CALLER_SPAN}-01",
        },
        timeout=ANSWER_MAX_S,
    )
    assert answer.status_code == 201, answer.text
    return Paid(key, document, answer.content)


def told_of(receiver: Receiver, paid: Paid) -> list[Received]:
    came = list(receiver.received)
    return [one for one in came if one.document["data"].get("payment_id") == paid.id]


def awaited(
    collector: Collector, trace_id: str, whole: Callable[[list[Exported]], bool]
) -> list[Exported]:
    """The trace's spans, once it is complete."""
    wait_until(
        lambda: whole(collector.of(trace_id)),
        what="the trace is not whole",
        limit_s=PATIENCE_S,
    )
    return collector.of(trace_id)


def named(spans: list[Exported], name: str) -> list[Exported]:
    return [span for span in spans if span.name == name]


def is_refused(span: Exported) -> bool:
    """Whether the provider refused the token of this call."""
    return bool(span.attributes.get("http.response.status_code") == 401)


def events_posted(spans: list[Exported]) -> set[str]:
    return {span.attributes["maramoja.event_type"] for span in named(spans, POST)}


def shape_of(spans: list[Exported]) -> list[str]:
    """The trace as an indented text; a line that repeats at the same place is written once."""
    lines: list[str] = []

    def tell(parent_id: str, depth: int) -> None:
        for span in spans:
            if span.parent_id == parent_id:
                event = span.attributes.get("maramoja.event_type", "")
                status = span.attributes.get("http.response.status_code", "")
                facts = (f"{span.kind:<8}", str(status), event)
                name = f"{'    ' * depth}{span.name}"
                line = "  ".join((f"{name:<28}", *filter(None, facts))).rstrip()
                if line not in lines:
                    lines.append(line)
                tell(span.span_id, depth + 1)

    tell(CALLER_SPAN, 0)
    return lines


@pytest.mark.usefixtures("endpoint")
def test_request_task_steps_calls_and_webhooks_are_one_trace(
    gateway: Gateway, collector: Collector, receiver: Receiver
) -> None:
    gateway.let_token_run_out()
    trace_id = new_trace()
    paid = pay(gateway, trace_id)
    gateway.await_end(paid)
    spans = awaited(
        collector,
        trace_id,
        lambda found: (
            len(named(found, POST)) == 3
            and {span.name for span in found} >= {REQUEST, "task payments.process_due", *STEPS}
        ),
    )

    (request,) = named(spans, REQUEST)
    assert request.parent_id == CALLER_SPAN
    below_request = {span.name for span in spans if span.parent_id == request.span_id}
    assert below_request == {"task payments.process_due", "payment submit", "payment check", POST}
    calls = {span.name: span for span in spans if span.name.startswith("mtn_momo ")}
    steps = {span.span_id: span.name for span in spans if span.name.startswith("payment ")}
    assert {name: steps[call.parent_id] for name, call in calls.items()} == {
        "mtn_momo token": "payment submit",
        "mtn_momo submit": "payment submit",
        "mtn_momo check": "payment check",
    }
    told = {one.headers["traceparent"] for one in told_of(receiver, paid)}
    assert told == {span.traceparent for span in named(spans, POST)}
    page = (ROOT / "docs/traces.md").read_text()
    (example,) = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    # Another worker may check with the old token; it gets a 401 and then a new one.
    shape = [line for line in shape_of(spans) if not line.endswith("401")]
    assert sorted(example.splitlines()) == sorted(shape), "\n".join(shape)


def test_a_span_says_which_payment_whose_and_what_came_of_it(
    gateway: Gateway, collector: Collector
) -> None:
    trace_id = new_trace()
    paid = pay(gateway, trace_id)
    gateway.await_end(paid)
    whole = {REQUEST, *STEPS}
    spans = awaited(collector, trace_id, lambda found: {span.name for span in found} >= whole)

    tenant_id = gateway.row(paid)["tenant_id"]
    (step,) = named(spans, "payment submit")
    assert step.attributes == {
        "maramoja.payment_id": paid.id,
        "maramoja.tenant_id": tenant_id,
        "maramoja.provider": "mtn_momo",
        "maramoja.generation": 1,
        "maramoja.outcome": "PENDING",
        "maramoja.reason": "accepted",
    }
    # The worker may have tried a token that another test has ended, and got a 401.
    (call,) = [span for span in named(spans, "mtn_momo submit") if not is_refused(span)]
    assert call.attributes == {
        "maramoja.provider": "mtn_momo",
        "maramoja.operation": "submit",
        "http.response.status_code": 202,
    }
    (request,) = named(spans, REQUEST)
    assert request.attributes["http.route"] == "/api/v1/payments"
    assert request.attributes["maramoja.payment_id"] == paid.id
    assert request.attributes["maramoja.tenant_id"] == tenant_id
    assert {span.service for span in spans} == {"maramoja"}


@pytest.mark.usefixtures("endpoint")
def test_the_trace_goes_on_when_the_worker_is_killed_in_between(
    gateway: Gateway, collector: Collector
) -> None:
    trace_id = new_trace()
    order = gateway.order()
    gateway.provider.fault(
        "accept_then_hang", match={"msisdn": order["payer"]}, parameters={"delay_s": 30.0}
    )
    with gateway.one_working() as (victim, other):
        paid = pay(gateway, trace_id, **order)
        gateway.await_call(paid, "create")
        # Its webhook's span must be exported before the kill: no other process exports it.
        awaited(collector, trace_id, lambda found: events_posted(found) == {"payment.accepted"})
        victim.kill()
        other.cont()
        gateway.end_leases(paid)
        gateway.await_end(paid)
    spans = awaited(
        collector,
        trace_id,
        lambda found: (
            {span.name for span in found} >= {REQUEST, "payment check"}
            and events_posted(found) >= {"payment.accepted", "payment.successful"}
        ),
    )

    (request,) = named(spans, REQUEST)
    # The killed worker's span never ended, so it was not exported.
    assert named(spans, "payment submit") == []
    after = [span for span in spans if span.name in {"payment check", POST}]
    assert {span.parent_id for span in after} == {request.span_id}
    checks = {span.span_id for span in named(spans, "payment check")}
    assert {span.parent_id for span in named(spans, "mtn_momo check")} <= checks


def test_a_replay_is_a_trace_of_its_own_with_a_link_to_the_payments(
    gateway: Gateway, collector: Collector
) -> None:
    first, again = new_trace(), new_trace()
    paid = pay(gateway, first)
    pay(gateway, again, key=paid.key, **paid.order)
    (request,) = named(
        awaited(collector, first, lambda found: bool(named(found, REQUEST))), REQUEST
    )
    (replay,) = awaited(collector, again, lambda found: bool(named(found, REQUEST)))

    assert replay.links == [f"{first}-{request.span_id}"]
    gateway.await_end(paid)
    assert {span.name for span in collector.of(again)} == {REQUEST}


def test_a_callback_opens_no_span_in_the_trace_that_it_names_and_links_to_the_payments(
    gateway: Gateway, collector: Collector
) -> None:
    trace_id, named_by_stranger = new_trace(), new_trace()
    paid = pay(gateway, trace_id)
    requests.put(
        f"{gateway.stack.api_url}/callbacks/mtn_momo/{paid.reference}",
        data="{}",
        headers={"traceparent": f"00-{named_by_stranger}-{CALLER_SPAN}-01"},
        timeout=ANSWER_MAX_S,
    )
    name = "PUT /callbacks/<provider>/<reference>"
    wait_until(lambda: bool(collector.about(paid.id, name)), what="no callback", limit_s=PATIENCE_S)
    (request,) = named(
        awaited(collector, trace_id, lambda found: bool(named(found, REQUEST))), REQUEST
    )

    assert collector.of(named_by_stranger) == []
    assert f"{trace_id}-{request.span_id}" in collector.about(paid.id, name)[0].links
    gateway.await_end(paid)


def test_log_lines_stand_in_the_trace_and_in_their_span(
    gateway: Gateway, collector: Collector
) -> None:
    trace_id = new_trace()
    paid = pay(gateway, trace_id)
    gateway.await_end(paid)
    awaited(collector, trace_id, lambda found: {span.name for span in found} >= {REQUEST, *STEPS})

    lines = [
        line
        for process in gateway.stack.processes.values()
        for line in process.log_text().splitlines()
        if trace_id in line
    ]
    events = {match[1] for line in lines if (match := re.search(r'"event": ?"([^"]+)"', line))}
    assert {"payment.accepted", "request.served", "payment.settled"} <= events
    written = {match[1] for line in lines if (match := re.search(r'"span_id": ?"([^"]+)"', line))}
    awaited(collector, trace_id, lambda found: written <= {span.span_id for span in found})
    assert all('"span_id"' in line for line in lines)


@pytest.fixture(scope="module")
def own_account(running: Gateway) -> OwnAccount:
    return opened_at(running.stack.simulator_url)


@pytest.mark.parametrize("query", ["payer={payer}", "cursor={payer}", "{payer}=1"])
def test_no_number_key_or_secret_is_in_any_span(
    gateway: Gateway,
    collector: Collector,
    endpoint: dict[str, Any],
    own_account: OwnAccount,
    query: str,
) -> None:
    gateway.secrets["the webhook's secret"] = endpoint["secret"].removeprefix("whsec_")
    give(gateway, TENANT, own_account)
    payer = gateway.order()["payer"]
    for kind in ("garbage", "accept_then_reset", "waf_html_200", "refuse_400"):
        one = gateway.order()["payer"]
        gateway.provider.fault(kind, match={"msisdn": one})
        gateway.await_end(pay(gateway, new_trace(), payer=one))
    written = {"external_id": f"order-{payer}", "description": WORDS, "metadata": {"for": WORDS}}
    paid = pay(gateway, new_trace(), payer=payer, **written)
    gateway.await_end(paid)
    asked = {"X-API-Key": gateway.api_key, "X-Request-Id": payer, "Idempotency-Key": payer}
    for path in (f"?{query.format(payer=payer)}&{WORDS}=1", f"/{payer}", f"/{WORDS}"):
        requests.get(f"{gateway.url}{path}", headers=asked, timeout=ANSWER_MAX_S)
    requests.request(payer, gateway.url, json={"payer": payer}, headers=asked, timeout=ANSWER_MAX_S)
    last = new_trace()
    gateway.await_end(pay(gateway, last))
    awaited(collector, last, lambda found: bool(named(found, "payment check")))

    exported = b"".join(list(collector.bodies)).decode("latin-1")
    assert len(collector.spans) > 20
    assert found_in(exported, {**secrets_of(gateway), "the idempotency key": paid.key}) == []
    for text in (WORDS, "requesttopay", "127.0.0.1", "SELECT", "order-"):
        assert text not in exported
