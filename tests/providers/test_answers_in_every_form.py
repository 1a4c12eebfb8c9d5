"""An answer has the same meaning in each legal form."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payments_app.kernel.http.messages import HttpRequest, HttpResponse
from payments_app.kernel.http.transport import RESPONSE_BYTES_MAX, Transport
from payments_app.kernel.money import EXPONENTS, Money
from payments_app.providers import mtn_answers
from payments_app.providers.contract import FailureCode, Observation, Verdict
from payments_app.providers.tokens import IssuedToken
from tests.providers.bare_server import BareServer
from tests.providers.legal_forms import http_forms, json_forms, number_forms, string_forms

PURE = settings(deadline=None, max_examples=80)
OVER_HTTP = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
APP = Flask(__name__)
amounts = st.integers(0, 10**12)


@st.composite
def paid_answers(draw: st.DrawFn) -> tuple[Money, bytes]:
    """A status answer that says SUCCESSFUL, with an amount in whole units."""
    whole, currency = draw(amounts), draw(st.sampled_from(sorted(EXPONENTS)))
    members = {
        "amount": draw(number_forms(whole)),
        "currency": draw(string_forms(currency)),
        "financialTransactionId": draw(st.sampled_from(["1234567", '"1234567"'])),
        "status": draw(string_forms("SUCCESSFUL")),
    }
    money = Money(whole * 10 ** EXPONENTS[currency], currency)
    return money, draw(json_forms(members))


@st.composite
def failed_answers(draw: st.DrawFn) -> bytes:
    word = draw(string_forms("APPROVAL_REJECTED"))
    reason = draw(st.sampled_from([word, f'{{"message":"…","code":{word}}}']))
    return draw(json_forms({"status": draw(string_forms("FAILED")), "reason": reason}))


def assert_paid(seen: Observation, money: Money) -> None:
    assert (seen.verdict, seen.amount) == (Verdict.SUCCESSFUL, money)
    assert seen.provider_transaction_id == "1234567"


# --- the forms of JSON ---------------------------------------------------------------------------


@PURE
@given(paid_answers())
def test_paid_is_paid(paid: tuple[Money, bytes]) -> None:
    money, body = paid
    assert_paid(mtn_answers.checked(HttpResponse(200, {}, body)), money)


@PURE
@given(failed_answers())
def test_failed_is_failed(body: bytes) -> None:
    seen = mtn_answers.checked(HttpResponse(200, {}, body))
    assert seen.verdict is Verdict.FAILED
    assert seen.failure is not None
    assert seen.failure.code is FailureCode.PAYER_REJECTED


@PURE
@given(st.data())
def test_a_token_is_a_token(data: st.DataObject) -> None:
    life = data.draw(number_forms(3600))
    body = data.draw(
        json_forms({"access_token": data.draw(string_forms("t0/ken")), "expires_in": life})
    )
    assert mtn_answers.token_issued(HttpResponse(200, {}, body)) == IssuedToken("t0/ken", 3600.0)


@PURE
@given(st.data())
def test_a_refusal_is_a_refusal(data: st.DataObject) -> None:
    body = data.draw(json_forms({"code": data.draw(string_forms("PAYER_NOT_FOUND"))}))
    assert mtn_answers.submitted(HttpResponse(500, {}, body)).verdict is Verdict.REFUSED


# --- the forms of HTTP ---------------------------------------------------------------------------


class Told:
    """A server that sends its current answer on each connection."""

    def __init__(self) -> None:
        self.raw = b""
        self._server = BareServer(self._behave)
        self.url = self._server.url()
        self.close = self._server.close

    def _behave(self, peer: socket.socket) -> None:
        self._server.read_request(peer)
        peer.sendall(self.raw)


@pytest.fixture
def told() -> Iterator[Told]:
    server = Told()
    yield server
    server.close()


def came(told: Told, raw: bytes) -> HttpResponse:
    told.raw = raw
    # A transport of its own: the server closes each connection after its answer.
    transport = Transport(user_agent="Maramoja/test")
    with APP.app_context():
        found = transport.unleased().send(HttpRequest("GET", told.url, {}, timeout_s=20))
    assert isinstance(found, HttpResponse), found
    return found


@OVER_HTTP
@given(data=st.data())
def test_paid_is_paid_over_http(told: Told, data: st.DataObject) -> None:
    money, body = data.draw(paid_answers())
    answer = came(told, data.draw(http_forms(200, body)))
    assert (answer.body, answer.truncated) == (body, False)
    assert_paid(mtn_answers.checked(answer), money)


@OVER_HTTP
@given(data=st.data())
def test_accepted_is_accepted_over_http(told: Told, data: st.DataObject) -> None:
    answer = came(told, data.draw(http_forms(202, b"")))
    assert mtn_answers.submitted(answer).verdict is Verdict.PENDING


@OVER_HTTP
@given(data=st.data(), spare=st.integers(-2, 2))
def test_the_bound_is_one_on_what_it_unfolds_to(
    told: Told, data: st.DataObject, spare: int
) -> None:
    body = b" " * (RESPONSE_BYTES_MAX + spare)
    answer = came(told, data.draw(http_forms(200, body)))
    assert (len(answer.body), answer.truncated) == (min(len(body), RESPONSE_BYTES_MAX), spare > 0)
