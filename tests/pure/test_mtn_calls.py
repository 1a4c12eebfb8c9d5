"""MTN MoMo: the requests that we send, under which token, and when we send none."""

from __future__ import annotations

import json

import pytest

from payments_app.kernel.http.messages import HttpRequest, HttpResponse, LeaseLost, NoResponse
from payments_app.kernel.money import Money
from payments_app.kernel.msisdn import Msisdn
from payments_app.providers.contract import (
    FailureCode,
    PaymentOrder,
    Verdict,
)
from payments_app.providers.mtn_answers import TOKEN_LIFE_DEFAULT_S, token_issued
from payments_app.providers.tokens import IssuedToken
from tests.providers.leaping import leaping
from tests.pure.mtn_script import (
    DUPLICATE,
    FIREWALL,
    HTML,
    OUT_OF_QUOTA,
    PAYMENT_ID,
    REFERENCE,
    TOKEN,
    TOKEN_BODY,
    UNAUTHORIZED,
    Reply,
    ScriptedWire,
    a_status,
    an_account,
    an_adapter,
    an_error,
    an_order,
    checked,
    submitted,
)

# --- a refused token ------------------------------------------------------------------------


def test_a_refused_token_is_minted_anew_and_the_same_request_sent_once_more() -> None:
    newer = HttpResponse(200, {}, TOKEN_BODY.replace(b"t0ken", b"newer"))
    http_client = ScriptedWire([TOKEN, UNAUTHORIZED, newer, HttpResponse(202, {}, b"")])
    assert an_adapter().submit(an_order(), an_account(), http_client).verdict is Verdict.PENDING
    _, first, _, second = http_client.calls
    assert first.headers["Authorization"] == "Bearer t0ken"
    assert second.headers["Authorization"] == "Bearer newer"
    assert first.headers["X-Reference-Id"] == second.headers["X-Reference-Id"] == str(REFERENCE)
    assert first.body == second.body


@pytest.mark.parametrize(
    "second",
    [
        [TOKEN, UNAUTHORIZED],
        [TOKEN, NoResponse("timeout", sent=True)],
        [TOKEN, NoResponse("connection_refused", sent=False)],
        [TOKEN, HttpResponse(429, {}, b"")],
        [TOKEN, LeaseLost()],
        [HttpResponse(500, {}, b'{"error":"login_failed"}')],
        [NoResponse("timeout", sent=True)],
        [LeaseLost()],
    ],
    ids=["401", "timeout", "refused", "429", "lease", "login", "no token", "lease before token"],
)
def test_after_a_401_a_submission_is_never_again_proven_unsent(second: list[Reply]) -> None:
    seen = submitted(UNAUTHORIZED, *second)
    assert seen.verdict is Verdict.UNKNOWN


def test_who_refuses_every_token_gets_one_call_a_question_and_mints_no_more() -> None:
    class Refusing:
        calls: list[str]

        def send(self, call: HttpRequest) -> HttpResponse:
            self.calls.append(call.operation)
            return TOKEN if call.operation == "token" else UNAUTHORIZED

    http_client, adapter = Refusing(), an_adapter()
    http_client.calls = []
    # All checks come within the pause after the second refusal, however busy the machine is.
    with leaping() as clock:
        clock.stop()
        for _ in range(60):
            assert adapter.check(an_order(), an_account(), http_client).reason == "unauthorized"
    assert http_client.calls.count("token") == 3
    assert http_client.calls.count("check") == 62


def test_a_duplicate_after_a_401_is_a_duplicate() -> None:
    assert (
        submitted(UNAUTHORIZED, TOKEN, HttpResponse(409, {}, DUPLICATE)).verdict
        is Verdict.DUPLICATE
    )


def test_a_status_question_survives_a_refused_token() -> None:
    paid = HttpResponse(200, {}, a_status("SUCCESSFUL"))
    assert checked(UNAUTHORIZED, TOKEN, paid).verdict is Verdict.SUCCESSFUL
    assert checked(UNAUTHORIZED, TOKEN, UNAUTHORIZED).verdict is Verdict.UNKNOWN


def test_a_lease_that_ends_before_anything_left_is_said_so() -> None:
    with pytest.raises(LeaseLost):
        submitted(LeaseLost())


# --- the token --------------------------------------------------------------------------------


def test_the_token_is_asked_for_with_an_empty_body_and_its_length() -> None:
    http_client = ScriptedWire([TOKEN])
    assert an_adapter().prepare(an_account(base_url="https://mtn.test/"), http_client) is None
    (call,) = http_client.calls
    assert (call.method, call.url) == ("POST", "https://mtn.test/collection/token/")
    assert call.headers == {
        "Authorization": "Basic dXNlcj06a2V5",
        "Ocp-Apim-Subscription-Key": "sub-key",
        "X-Target-Environment": "sandbox",
        "Content-Length": "0",
    }
    assert (call.body, call.timeout_s) == (None, 30.0)


def test_one_token_serves_many_calls() -> None:
    http_client = ScriptedWire(
        [TOKEN, HttpResponse(202, {}, b""), HttpResponse(200, {}, a_status("PENDING"))]
    )
    adapter, account = an_adapter(), an_account()
    assert adapter.prepare(account, http_client) is None
    adapter.submit(an_order(), account, http_client)
    adapter.check(an_order(), account, http_client)
    assert [call.method for call in http_client.calls] == ["POST", "POST", "GET"]


REFUSED_TOKENS = [
    HttpResponse(401, {}, b'{"error":"invalid_client"}'),
    HttpResponse(500, {}, b'{"error":"login_failed"}'),
    HttpResponse(400, {}, b'{"error":"Invalid or missing X-Target-Environment header"}'),
    HttpResponse(403, {}, HTML),
]
MISSING_TOKENS: list[HttpResponse | NoResponse] = [
    NoResponse("timeout", sent=True),
    NoResponse("connection_refused", sent=False),
    HttpResponse(411, {}, b""),
    HttpResponse(429, {"retry-after": "9"}, b""),
    HttpResponse(500, {}, b""),
    HttpResponse(503, {}, HTML),
    HttpResponse(200, {}, FIREWALL),
    HttpResponse(200, {}, b"{}"),
    HttpResponse(200, {}, b'{"access_token":null,"expires_in":3600}'),
    HttpResponse(200, {}, b'{"access_token":"","expires_in":3600}'),
    HttpResponse(200, {}, b'{"access_token":"a b","expires_in":3600}'),
    HttpResponse(200, {}, b'{"access_token":"a\\r\\nX: y","expires_in":3600}'),
    HttpResponse(200, {}, b'{"access_token":"abc","expires_in":0}'),
    HttpResponse(200, {}, b'{"access_token":"abc","expires_in":-5}'),
    HttpResponse(200, {}, b'{"access_token":"abc","expires_in":3600,"expires_in":60}'),
    HttpResponse(403, {}, OUT_OF_QUOTA),
    HttpResponse(202, {}, TOKEN_BODY),
]


@pytest.mark.parametrize("reply", [*REFUSED_TOKENS, *MISSING_TOKENS])
def test_without_a_token_nothing_is_sent(reply: HttpResponse | NoResponse) -> None:
    http_client = ScriptedWire([reply])
    adapter, account = an_adapter(), an_account()
    not_ready = adapter.prepare(account, http_client)
    assert not_ready is not None
    assert not_ready.verdict is Verdict.NOT_SENT
    # The token is not requested again at once either.
    assert adapter.submit(an_order(), account, http_client).verdict is Verdict.NOT_SENT
    assert adapter.check(an_order(), account, http_client).verdict is Verdict.UNKNOWN
    assert len(http_client.calls) == 1


@pytest.mark.parametrize(
    ("expires_in", "lives_s"),
    [
        ("", TOKEN_LIFE_DEFAULT_S),
        (',"expires_in":null', TOKEN_LIFE_DEFAULT_S),
        (',"expires_in":"soon"', TOKEN_LIFE_DEFAULT_S),
        (',"expires_in":true', TOKEN_LIFE_DEFAULT_S),
        (',"expires_in":1e999999999', TOKEN_LIFE_DEFAULT_S),
        (',"expires_in":3600', 3600.0),
        (',"expires_in":3600.0', 3600.0),
        (',"expires_in":3.6E3', 3600.0),
        (',"expires_in":"3600"', 3600.0),
        (',"expires_in":"3600.0"', 3600.0),
        (',"expires_in":1e9', 1e9),
    ],
)
def test_a_token_lives_as_long_as_it_says_in_any_form(expires_in: str, lives_s: float) -> None:
    found = token_issued(HttpResponse(200, {}, f'{{"access_token":"abc"{expires_in}}}'.encode()))
    assert found == IssuedToken("abc", lives_s)


def test_refused_credentials_are_told_from_an_outage() -> None:
    for reply in REFUSED_TOKENS:
        seen = an_adapter().prepare(an_account(), ScriptedWire([reply]))
        assert seen is not None
        assert seen.failure is not None
        assert seen.failure.code is FailureCode.PROVIDER_MISCONFIGURED
    for outage in MISSING_TOKENS:
        seen = an_adapter().prepare(an_account(), ScriptedWire([outage]))
        assert seen is not None
        assert seen.failure is None


def test_an_answer_that_may_hold_a_token_is_not_kept_as_evidence() -> None:
    odd = HttpResponse(200, {}, b'{"access_token":"s3cret","expires_in":0}')
    seen = an_adapter().prepare(an_account(), ScriptedWire([odd]))
    assert seen is not None
    assert seen.body == b""


# --- what we send -------------------------------------------------------------------------------


def test_a_submission_is_exactly_what_the_portal_describes() -> None:
    http_client = ScriptedWire([TOKEN, HttpResponse(202, {}, b"")])
    order = an_order(
        payer_message="Rent May", payee_note="Flat 3", callback_url="https://us.test/callbacks/x/y"
    )
    an_adapter().submit(order, an_account("mtnuganda"), http_client)
    call = http_client.calls[-1]
    assert (call.method, call.url) == ("POST", "https://mtn.test/collection/v1_0/requesttopay")
    assert call.headers == {
        "Authorization": "Bearer t0ken",
        "Ocp-Apim-Subscription-Key": "sub-key",
        "X-Target-Environment": "mtnuganda",
        "X-Reference-Id": str(REFERENCE),
        "X-Callback-Url": "https://us.test/callbacks/x/y",
        "Content-Type": "application/json",
    }
    assert json.loads(call.body or b"") == {
        "amount": "1000",
        "currency": "UGX",
        "externalId": str(PAYMENT_ID),
        "payer": {"partyIdType": "MSISDN", "partyId": "256772123456"},
        "payerMessage": "Rent May",
        "payeeNote": "Flat 3",
    }
    assert call.timeout_s == 15.0


@pytest.mark.parametrize("callback_url", [None, ""])
def test_what_is_not_given_is_not_sent(callback_url: str | None) -> None:
    http_client = ScriptedWire([TOKEN, HttpResponse(202, {}, b"")])
    order = PaymentOrder(
        reference=REFERENCE,
        payment_id=PAYMENT_ID,
        money=Money(1000, "UGX"),
        payer=Msisdn("256772123456"),
        callback_url=callback_url,
    )
    an_adapter().submit(order, an_account(), http_client)
    call = http_client.calls[-1]
    assert "X-Callback-Url" not in call.headers
    assert set(json.loads(call.body or b"")) == {"amount", "currency", "externalId", "payer"}


@pytest.mark.parametrize(
    ("money", "amount"),
    [
        (Money(1000, "UGX"), "1000"),
        (Money(1250, "GHS"), "12.50"),
        (Money(1200, "GHS"), "12"),
        (Money(1, "EUR"), "0.01"),
        (Money(100_000, "EUR"), "1000"),
        (Money(100, "XAF"), "100"),
    ],
)
def test_the_amount_goes_out_in_major_units(money: Money, amount: str) -> None:
    http_client = ScriptedWire([TOKEN, HttpResponse(202, {}, b"")])
    an_adapter().submit(an_order(money), an_account(), http_client)
    assert json.loads(http_client.calls[-1].body or b"")["amount"] == amount


def test_a_status_question_is_exactly_what_the_portal_describes() -> None:
    http_client = ScriptedWire([TOKEN, HttpResponse(200, {}, a_status("PENDING"))])
    an_adapter().check(an_order(), an_account(), http_client)
    call = http_client.calls[-1]
    assert call.method == "GET"
    assert call.url == f"https://mtn.test/collection/v1_0/requesttopay/{REFERENCE}"
    assert call.headers == {
        "Authorization": "Bearer t0ken",
        "Ocp-Apim-Subscription-Key": "sub-key",
        "X-Target-Environment": "sandbox",
    }
    assert call.body is None


def test_no_call_shows_its_headers_or_its_body() -> None:
    http_client = ScriptedWire([TOKEN, HttpResponse(202, {}, b"")])
    an_adapter().submit(an_order(), an_account(), http_client)
    shown = repr(http_client.calls)
    for secret in ("sub-key", "t0ken", "dXNlcj06a2V5", "256772123456"):
        assert secret not in shown


# --- probe, terms --------------------------------------------------------------------------------

BALANCE = HttpResponse(200, {}, b'{"availableBalance":"15000","currency":"UGX"}')


@pytest.mark.parametrize(
    ("replies", "verdict"),
    [
        ([TOKEN, BALANCE], Verdict.PENDING),
        ([TOKEN, UNAUTHORIZED], Verdict.REFUSED),
        ([TOKEN, HttpResponse(403, {}, b"FORBIDDEN IP")], Verdict.REFUSED),
        (
            [TOKEN, HttpResponse(500, {}, an_error("NOT_ALLOWED_TARGET_ENVIRONMENT"))],
            Verdict.REFUSED,
        ),
        ([TOKEN, HttpResponse(500, {}, an_error("INTERNAL_PROCESSING_ERROR"))], Verdict.UNKNOWN),
        ([TOKEN, HttpResponse(200, {}, HTML)], Verdict.UNKNOWN),
        ([TOKEN, HttpResponse(202, {}, b"")], Verdict.UNKNOWN),
        ([TOKEN, HttpResponse(429, {}, b"")], Verdict.UNKNOWN),
        ([TOKEN, NoResponse("timeout", sent=True)], Verdict.UNKNOWN),
        ([REFUSED_TOKENS[0]], Verdict.REFUSED),
        ([REFUSED_TOKENS[1]], Verdict.REFUSED),
        ([NoResponse("timeout", sent=True)], Verdict.NOT_SENT),
    ],
)
def test_a_probe_says_whether_the_credentials_work(replies: list[Reply], verdict: Verdict) -> None:
    assert an_adapter().probe(an_account(), ScriptedWire(replies)).verdict is verdict


def test_a_probe_never_trusts_a_token_that_it_has() -> None:
    http_client = ScriptedWire([TOKEN, TOKEN, BALANCE])
    adapter, account = an_adapter(), an_account()
    assert adapter.prepare(account, http_client) is None
    adapter.probe(account, http_client)
    assert [call.url.rsplit("/", 2)[1] for call in http_client.calls] == [
        "token",
        "token",
        "account",
    ]


@pytest.mark.parametrize(
    ("environment", "country", "currencies"),
    [
        ("mtnuganda", "UG", {"UGX": 0}),
        ("mtnghana", "GH", {"GHS": 2}),
        ("mtnivorycoast", "CI", {"XOF": 0}),
        ("mtnzambia", "ZM", {"ZMW": 2}),
        ("mtncameroon", "CM", {"XAF": 0}),
        ("mtnbenin", "BJ", {"XOF": 0}),
        ("mtncongo", "CG", {"XAF": 0}),
        ("mtnswaziland", "SZ", {"SZL": 2}),
        ("mtnguineaconakry", "GN", {"GNF": 0}),
        ("mtnsouthafrica", "ZA", {"ZAR": 2}),
        ("mtnliberia", "LR", {"LRD": 2, "USD": 2}),
        ("mtnrwanda", "RW", {"RWF": 0}),
        ("mtnnigeria", "NG", {"NGN": 2}),
        ("mtnsouthsudan", "SS", {"SSP": 2}),
        ("mtnguineabissau", "GW", {"XOF": 0}),
    ],
)
def test_each_market_takes_its_own_currency_and_numbers(
    environment: str, country: str, currencies: dict[str, int]
) -> None:
    terms = an_adapter().terms(an_account(environment))
    assert (terms.country, terms.currencies) == (country, currencies)
    assert terms.checks_per_s == 10.0


def test_the_sandbox_takes_euros_only_and_numbers_of_any_country() -> None:
    terms = an_adapter().terms(an_account("sandbox"))
    assert terms.currencies == {"EUR": 2}
    assert (terms.country, terms.checks_per_s) == (None, None)


def test_an_unknown_target_environment_is_an_error() -> None:
    with pytest.raises(ValueError, match="mtnatlantis"):
        an_adapter().terms(an_account("mtnatlantis"))
