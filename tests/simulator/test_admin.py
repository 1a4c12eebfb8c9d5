"""The admin API: evidence in pages, the summary, settings, resets; and the app in-process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from simulator.app import Simulator, create_app
from simulator.store import Store
from tests.simulator.driving import Merchant, new_reference


def test_the_summary_counts(merchant: Merchant) -> None:
    reference = new_reference()
    body = merchant.body(externalId="one-order")
    merchant.pay(reference, json=body)
    merchant.pay(reference, json=body)
    merchant.pay(json=body)
    merchant.pay(msisdn="46733123451")
    merchant.pay(msisdn="46733123453")
    summary = merchant.admin("GET", "summary")
    generation = summary.pop("generation")
    assert generation == merchant.admin("GET", "health")["generation"]
    assert summary == {
        "accepted": 4,
        "successful": 2,
        "failed": 1,
        "pending": 1,
        "movements": 2,
        "movements_by_reference_max": 1,
        "movements_by_external_id_max": 2,
        "submissions_by_reference_max": 2,
        "requests": 6,
        "submissions": 5,
        "duplicate_references_refused": 1,
        "callbacks": 0,
        "totals": [
            {
                "operation": "requesttopay",
                "currency": "EUR",
                "movements": 2,
                "amount_minor": 1000,
            }
        ],
    }


def test_evidence_comes_in_pages(merchant: Merchant) -> None:
    references = [new_reference() for _ in range(5)]
    for reference in references:
        merchant.pay(reference)
    seen, cursor = [], None
    while True:
        params = {"limit": "2"} | ({"cursor": str(cursor)} if cursor else {})
        page = merchant.admin("GET", "ledger", **params)
        seen.append([row["reference_id"] for row in page["data"]])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == [references[:2], references[2:4], references[4:]]


@pytest.mark.parametrize("view", ["ledger", "payments"])
def test_evidence_of_one_order(merchant: Merchant, view: str) -> None:
    merchant.pay(json=merchant.body(externalId="wanted"))
    merchant.pay()
    (row,) = merchant.seen(view, external_id="wanted")
    assert row["external_id"] == "wanted"


def test_every_call_is_in_the_log(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference)
    merchant.ask(reference)
    merchant.call("GET", "/nowhere")
    seen = [(row["operation"], row["method"], row["status"]) for row in merchant.seen("requests")]
    assert seen == [
        ("token", "POST", 200),
        ("create", "POST", 202),
        ("status", "GET", 200),
        ("unknown", "GET", 404),
    ]
    assert len(merchant.seen("requests", reference=reference)) == 2


def test_a_reset_of_data_begins_anew_and_keeps_accounts(merchant: Merchant) -> None:
    reference = new_reference()
    merchant.pay(reference, msisdn="46733123453")
    merchant.fault("refuse_400")
    merchant.set(approval_delay_s=5)
    merchant.admin("POST", "reset")
    assert merchant.status(reference) == "PENDING", "data stays unless asked"
    assert merchant.admin("GET", "faults") == {"data": []}
    assert merchant.admin("GET", "settings")["approval_delay_s"] == 0
    merchant.admin("POST", "reset", {"data": True})
    assert merchant.ask(reference).status_code == 404
    assert merchant.admin("GET", "summary")["accepted"] == 0
    assert merchant.pay(reference).status_code == 202


@pytest.mark.parametrize(
    ("method", "path", "document", "field"),
    [
        ("POST", "settings", {"aproval_delay_s": 1}, "aproval_delay_s"),
        ("POST", "settings", {"approval_delay_s": -1}, "approval_delay_s"),
        ("POST", "settings", {"approval_delay_s": True}, "approval_delay_s"),
        ("POST", "settings", {"token_ttl_s": None}, "token_ttl_s"),
        ("POST", "settings", {"reason_form": "xml"}, "reason_form"),
        ("POST", "settings", {"callback_mode": "loud"}, "callback_mode"),
        ("POST", "settings", {"callback_times": 0}, "callback_times"),
        ("POST", "settings", {"opening_balance": 5}, "opening_balance"),
        ("POST", "settings", ["approval_delay_s"], "body"),
        ("POST", "faults", {"faults": "slow"}, "faults"),
        ("POST", "faults", {"faults": [{"kind": "slow"}, 5]}, "faults.1"),
        ("POST", "faults", {"faults": [], "kind": "slow"}, "kind"),
        ("POST", "clock", {}, "advance_s"),
        ("POST", "clock", {"advance_s": -5}, "advance_s"),
        ("POST", "reset", {"data": "yes"}, "data"),
        ("GET", "ledger?limit=0", None, "limit"),
        ("GET", "ledger?limit=many", None, "limit"),
        ("GET", "requests?cursor=x", None, "cursor"),
    ],
)
def test_bad_input_is_a_400_that_names_the_field(
    merchant: Merchant, method: str, path: str, document: object, field: str
) -> None:
    before = merchant.admin("GET", "settings")
    answer = merchant.call(method, f"/_admin/{path}", json=document)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)
    assert merchant.admin("GET", "settings") == before


def test_faults_are_set_together_in_their_order_or_not_at_all(merchant: Merchant) -> None:
    wanted = [{"kind": "slow", "match": {"msisdn": f"46733{number:06}"}} for number in range(1000)]
    merchant.admin("POST", "faults", {"faults": wanted})
    shown = merchant.admin("GET", "faults")["data"]
    assert [one["match"] for one in shown] == [one["match"] for one in wanted]
    refused = merchant.call("POST", "/_admin/faults", json={"faults": [*wanted, {"kind": "none"}]})
    assert (refused.status_code, refused.json()["error"]["field"]) == (400, "kind")
    assert merchant.admin("GET", "faults")["data"] == shown


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "nothing"), ("PUT", "faults"), ("DELETE", "faults/999999"), ("DELETE", "faults/x")],
)
def test_an_unknown_admin_call_is_a_404(merchant: Merchant, method: str, path: str) -> None:
    answer = merchant.call(method, f"/_admin/{path}")
    assert (answer.status_code, set(answer.json()["error"])) == (404, {"field", "message"})


@pytest.fixture
def wsgi() -> Iterator[Simulator]:
    simulator = create_app(Store())
    yield simulator
    simulator.close()


def call_wsgi(wsgi: Simulator, path: str, body: bytes = b"") -> tuple[str, bytes]:
    started: list[Any] = []
    environ = {
        "REQUEST_METHOD": "POST" if body else "GET",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "CONTENT_LENGTH": str(len(body)) if body else "",
        "CONTENT_TYPE": "application/json",
        "HTTP_OCP_APIM_SUBSCRIPTION_KEY": "k",
        "wsgi.input": io.BytesIO(body),
    }
    chunks = wsgi(environ, lambda *arguments: started.extend(arguments))
    return started[0], b"".join(chunks)


def test_it_runs_in_process_too(wsgi: Simulator) -> None:
    status, body = call_wsgi(wsgi, "/_admin/health")
    assert (status, b'"status":"ok"' in body) == ("200 OK", True)
    assert call_wsgi(wsgi, "/nowhere")[0] == "404 Not Found"


def test_in_process_a_reset_is_an_exception(wsgi: Simulator) -> None:
    document = b'{"kind": "reset_before", "operation": "any"}'
    assert call_wsgi(wsgi, "/_admin/faults", document)[0] == "201 Created"
    with pytest.raises(ConnectionResetError):
        call_wsgi(wsgi, "/v1_0/apiuser", b"{}")
