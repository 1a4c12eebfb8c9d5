"""MTN MoMo on the wire: what we send, and what each answer of its error tables proves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from cryptography.fernet import Fernet
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from payments_app.kernel.money import Money
from payments_app.kernel.msisdn import Msisdn
from payments_app.kernel.secrets import Cipher
from payments_app.kernel.wire import Answer, Call, LeaseLost, Silence
from payments_app.providers.contract import (
    FailureCode,
    Mode,
    Observation,
    PaymentOrder,
    ProviderAccount,
    Verdict,
)
from payments_app.providers.mtn_momo import MtnMomo
from payments_app.providers.tokens import TokenCache

REFERENCE = UUID("6f1c2a34-9a3b-4c1d-8e2f-000000000001")
PAYMENT_ID = UUID("0199c0de-0000-7000-8000-000000000002")
TOKEN_BODY = b'{"access_token":"t0ken","token_type":"access_token","expires_in":3600}'
TOKEN = Answer(200, {}, TOKEN_BODY)
HTML = b"<html><head><title>Error</title></head><body>The page can't be shown</body></html>"
FIREWALL = b"<html><body>Request Rejected. Your support ID is: 1234</body></html>"
DUPLICATE = (
    b'{"code":"RESOURCE_ALREADY_EXIST",'
    b'"message":"Duplicated reference id. Creation of resource failed."}'
)
NOT_FOUND = b'{"code":"RESOURCE_NOT_FOUND","message":"Requested resource was not found."}'
AZURE_401 = b'{"statusCode":401,"message":"Access denied due to invalid subscription key."}'
AZURE_404 = b'{"statusCode":404,"message":"Resource not found"}'

Reply = Answer | Silence | LeaseLost


@dataclass
class ScriptedWire:
    """A wire by hand: gives the replies in order and keeps what was asked."""

    replies: Sequence[Reply]
    calls: list[Call] = field(default_factory=list)

    def send(self, call: Call) -> Answer | Silence:
        self.calls.append(call)
        reply = self.replies[len(self.calls) - 1]
        if isinstance(reply, LeaseLost):
            raise reply
        return reply


def an_adapter() -> MtnMomo:
    """With a Redis that is away, so that each adapter's tokens are its own."""
    away = Redis(port=1, retry=Retry(NoBackoff(), 0), socket_connect_timeout=0.1)
    return MtnMomo(TokenCache(away, Cipher([Fernet.generate_key().decode()])))


def an_account(
    target_environment: str = "sandbox", base_url: str = "https://mtn.test"
) -> ProviderAccount:
    return ProviderAccount(
        id=None,
        provider="mtn_momo",
        mode=Mode.TEST,
        base_url=base_url,
        target_environment=target_environment,
        credentials={
            "collection_subscription_key": "sub-key",
            "collection_api_user": "user=",
            "collection_api_key": "key",
        },
    )


def an_order(money: Money | None = None, **options: str) -> PaymentOrder:
    return PaymentOrder(
        reference=REFERENCE,
        payment_id=PAYMENT_ID,
        money=money or Money(1000, "UGX"),
        payer=Msisdn("256772123456"),
        **options,
    )


def submitted(*replies: Reply) -> Observation:
    """What the adapter makes of these replies to a submission, after a token."""
    return an_adapter().submit(an_order(), an_account(), ScriptedWire([TOKEN, *replies]))


def checked(*replies: Reply) -> Observation:
    """What the adapter makes of these replies to a status question, after a token."""
    return an_adapter().check(an_order(), an_account(), ScriptedWire([TOKEN, *replies]))


def an_error(code: str) -> bytes:
    return json.dumps({"code": code, "message": "…"}).encode()


def a_status(status: str, **members: object) -> bytes:
    body = {"amount": "1000", "currency": "UGX", "externalId": "x", "status": status, **members}
    return json.dumps(body).encode()


# --- submit: every row of the error tables --------------------------------------------------

SUBMISSIONS = [
    # status, body, verdict, failure code
    (202, b"", Verdict.PENDING, None),
    (202, HTML, Verdict.PENDING, None),
    (200, b"", Verdict.UNKNOWN, None),
    (200, b'{"status":"SUCCESSFUL"}', Verdict.UNKNOWN, None),
    (200, HTML, Verdict.UNKNOWN, None),
    (200, FIREWALL, Verdict.REFUSED, FailureCode.REQUEST_REFUSED),
    (201, b"", Verdict.UNKNOWN, None),
    (204, b"", Verdict.UNKNOWN, None),
    (302, b"", Verdict.UNKNOWN, None),
    (400, b"", Verdict.REFUSED, FailureCode.REQUEST_REFUSED),
    (400, HTML, Verdict.REFUSED, FailureCode.REQUEST_REFUSED),
    (400, an_error("INVALID_CURRENCY"), Verdict.REFUSED, FailureCode.CURRENCY_REFUSED),
    (403, b"FORBIDDEN IP", Verdict.REFUSED, FailureCode.PROVIDER_NOT_ALLOWED),
    (403, HTML, Verdict.REFUSED, FailureCode.PROVIDER_NOT_ALLOWED),
    (404, AZURE_404, Verdict.UNKNOWN, None),
    (404, NOT_FOUND, Verdict.UNKNOWN, None),
    (405, b"", Verdict.UNKNOWN, None),
    (408, b"", Verdict.UNKNOWN, None),
    (409, DUPLICATE, Verdict.DUPLICATE, None),
    (409, b"", Verdict.DUPLICATE, None),
    (411, b"", Verdict.REFUSED, FailureCode.REQUEST_REFUSED),
    (413, b"", Verdict.REFUSED, FailureCode.REQUEST_REFUSED),
    (415, b"", Verdict.REFUSED, FailureCode.REQUEST_REFUSED),
    (429, b"", Verdict.NOT_SENT, None),
    (500, an_error("NOT_ALLOWED"), Verdict.REFUSED, FailureCode.PROVIDER_NOT_ALLOWED),
    (
        500,
        an_error("NOT_ALLOWED_TARGET_ENVIRONMENT"),
        Verdict.REFUSED,
        FailureCode.PROVIDER_MISCONFIGURED,
    ),
    (
        500,
        an_error("INVALID_CALLBACK_URL_HOST"),
        Verdict.REFUSED,
        FailureCode.PROVIDER_MISCONFIGURED,
    ),
    (500, an_error("INVALID_CURRENCY"), Verdict.REFUSED, FailureCode.CURRENCY_REFUSED),
    (500, an_error("PAYER_NOT_FOUND"), Verdict.REFUSED, FailureCode.PAYER_NOT_FOUND),
    (500, an_error("PAYEE_NOT_FOUND"), Verdict.REFUSED, FailureCode.PAYEE_NOT_FOUND),
    (
        500,
        an_error("PAYEE_NOT_ALLOWED_TO_RECEIVE"),
        Verdict.REFUSED,
        FailureCode.PAYEE_CANNOT_RECEIVE,
    ),
    (500, an_error("PAYER_LIMIT_REACHED"), Verdict.REFUSED, FailureCode.PAYER_LIMIT_REACHED),
    (500, an_error("NOT_ENOUGH_FUNDS"), Verdict.REFUSED, FailureCode.INSUFFICIENT_FUNDS),
    (500, DUPLICATE, Verdict.DUPLICATE, None),
    (400, DUPLICATE, Verdict.DUPLICATE, None),
    (500, an_error("INTERNAL_PROCESSING_ERROR"), Verdict.UNKNOWN, None),
    (500, an_error("SERVICE_UNAVAILABLE"), Verdict.UNKNOWN, None),
    # These speak of a payment that exists: then we ask.
    (500, an_error("APPROVAL_REJECTED"), Verdict.UNKNOWN, None),
    (500, an_error("EXPIRED"), Verdict.UNKNOWN, None),
    (500, an_error("TRANSACTION_CANCELED"), Verdict.UNKNOWN, None),
    (500, an_error("PAYMENT_NOT_APPROVED"), Verdict.UNKNOWN, None),
    (500, an_error("SOMETHING_NEW"), Verdict.UNKNOWN, None),
    (500, b'{"error":"login_failed"}', Verdict.UNKNOWN, None),
    (500, b"", Verdict.UNKNOWN, None),
    (500, HTML, Verdict.UNKNOWN, None),
    (500, b'{"code":"NOT_ALLOWED","code":"INTERNAL_PROCESSING_ERROR"}', Verdict.UNKNOWN, None),
    (500, b'{"code":{"code":"NOT_ALLOWED"}}', Verdict.UNKNOWN, None),
    (502, HTML, Verdict.UNKNOWN, None),
    (503, an_error("SERVICE_UNAVAILABLE"), Verdict.UNKNOWN, None),
    (503, an_error("NOT_ALLOWED"), Verdict.UNKNOWN, None),
    (504, HTML, Verdict.UNKNOWN, None),
]


@pytest.mark.parametrize(("status", "body", "verdict", "failure"), SUBMISSIONS)
def test_an_answer_to_a_submission_proves_just_this(
    status: int, body: bytes, verdict: Verdict, failure: FailureCode | None
) -> None:
    seen = submitted(Answer(status, {}, body, elapsed_s=0.5))
    assert seen.verdict is verdict
    assert (seen.failure.code if seen.failure else None) is failure
    assert (seen.http_status, seen.body, seen.elapsed_s) == (status, body, 0.5)


def test_no_answer_can_end_a_payment_at_submission() -> None:
    for status, body, _, _ in SUBMISSIONS:
        assert submitted(Answer(status, {}, body)).verdict not in (
            Verdict.SUCCESSFUL,
            Verdict.FAILED,
        )


def test_a_refusal_keeps_the_providers_own_word() -> None:
    seen = submitted(Answer(500, {}, an_error("INVALID_CURRENCY")))
    assert seen.failure is not None
    assert seen.failure.provider_code == "INVALID_CURRENCY"


@pytest.mark.parametrize("ask", [submitted, checked])
def test_silence_after_sending_is_unknown(ask: Callable[..., Observation]) -> None:
    assert ask(Silence("timeout", sent=True)).verdict is Verdict.UNKNOWN


def test_a_submission_that_never_left_may_be_repeated() -> None:
    assert submitted(Silence("connection_refused", sent=False)).verdict is Verdict.NOT_SENT


def test_throttled_says_when_to_come_back() -> None:
    throttled = Answer(429, {"retry-after": "7"}, b"")
    assert submitted(throttled).retry_after_s == 7.0
    assert checked(throttled).retry_after_s == 7.0
    assert checked(throttled).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize(
    "value", ["", "soon", "-1", "1.5", "99999", "Wed, 21 Oct 2026 07:28:00 GMT"]
)
def test_a_retry_after_that_cannot_be_used_is_none(value: str) -> None:
    assert submitted(Answer(429, {"retry-after": value}, b"")).retry_after_s is None


# --- check --------------------------------------------------------------------------------


def test_a_paid_payment_is_successful_with_amount_and_transaction_id() -> None:
    seen = checked(Answer(200, {}, a_status("SUCCESSFUL", financialTransactionId=1234567)))
    assert seen.verdict is Verdict.SUCCESSFUL
    assert seen.amount == Money(1000, "UGX")
    assert seen.provider_transaction_id == "1234567"
    assert seen.failure is None


@pytest.mark.parametrize(
    ("amount", "currency", "money"),
    [
        ('"1000"', "UGX", Money(1000, "UGX")),
        ("1000", "UGX", Money(1000, "UGX")),
        ('"1000.00"', "UGX", Money(1000, "UGX")),
        ('"6.0"', "EUR", Money(600, "EUR")),
        ("6.10", "EUR", Money(610, "EUR")),
        ('"100.98"', "EUR", Money(10098, "EUR")),
    ],
)
def test_the_amount_is_read_exactly_as_text_or_number(
    amount: str, currency: str, money: Money
) -> None:
    body = f'{{"status":"SUCCESSFUL","amount":{amount},"currency":"{currency}"}}'
    assert checked(Answer(200, {}, body.encode())).amount == money


@pytest.mark.parametrize(
    "members",
    [
        "",
        ',"amount":"1000"',
        ',"currency":"UGX"',
        ',"amount":null,"currency":"UGX"',
        ',"amount":true,"currency":"UGX"',
        ',"amount":"0.5","currency":"UGX"',
        ',"amount":"1e3","currency":"UGX"',
        ',"amount":1e3,"currency":"UGX"',
        ',"amount":-1000,"currency":"UGX"',
        ',"amount":"1,000","currency":"UGX"',
        ',"amount":"1000","currency":"XXX"',
        ',"amount":{"value":"1000"},"currency":"UGX"',
        ',"amount":' + "9" * 5000 + ',"currency":"UGX"',
    ],
)
def test_paid_without_a_readable_amount_is_unknown(members: str) -> None:
    seen = checked(Answer(200, {}, f'{{"status":"SUCCESSFUL"{members}}}'.encode()))
    assert (seen.verdict, seen.amount) == (Verdict.UNKNOWN, None)


def test_pending_is_pending() -> None:
    assert checked(Answer(200, {}, a_status("PENDING"))).verdict is Verdict.PENDING


REASONS = [
    ("INTERNAL_PROCESSING_ERROR", FailureCode.PROVIDER_ERROR),
    ("APPROVAL_REJECTED", FailureCode.PAYER_REJECTED),
    ("EXPIRED", FailureCode.PAYER_DID_NOT_APPROVE),
    ("EXPIRED\r\n", FailureCode.PAYER_DID_NOT_APPROVE),
    (" EXPIRED ", FailureCode.PAYER_DID_NOT_APPROVE),
    ("PAYER_NOT_FOUND", FailureCode.PAYER_NOT_FOUND),
    ("PAYEE_NOT_ALLOWED_TO_RECEIVE", FailureCode.PAYEE_CANNOT_RECEIVE),
    ("NOT_ALLOWED", FailureCode.PROVIDER_NOT_ALLOWED),
    ("NOT_ALLOWED_TARGET_ENVIRONMENT", FailureCode.PROVIDER_MISCONFIGURED),
    ("INVALID_CALLBACK_URL_HOST", FailureCode.PROVIDER_MISCONFIGURED),
    ("INVALID_CURRENCY", FailureCode.CURRENCY_REFUSED),
    ("SERVICE_UNAVAILABLE", FailureCode.PROVIDER_UNAVAILABLE),
    ("COULD_NOT_PERFORM_TRANSACTION", FailureCode.PAYER_DID_NOT_APPROVE),
    ("NOT_ENOUGH_FUNDS", FailureCode.INSUFFICIENT_FUNDS),
    ("PAYER_LIMIT_REACHED", FailureCode.PAYER_LIMIT_REACHED),
    ("PAYEE_NOT_FOUND", FailureCode.PAYEE_NOT_FOUND),
    ("PAYMENT_NOT_APPROVED", FailureCode.PAYER_DID_NOT_APPROVE),
    ("TRANSACTION_CANCELED", FailureCode.CANCELLED),
    ("LOW_BALANCE_OR_PAYEE_LIMIT_REACHED_OR_NOT_ALLOWED", FailureCode.INSUFFICIENT_FUNDS),
    ("SENDER_ACCOUNT_NOT_ACTIVE", FailureCode.PAYER_NOT_ACTIVE),
    ("PAYEE_LIMIT_REACHED", FailureCode.PAYEE_CANNOT_RECEIVE),
    ("VALIDATION_ERROR", FailureCode.REQUEST_REFUSED),
    ("TRANSACTION_NOT_FOUND", FailureCode.OTHER),
    ("TRANSACTION_NOT_COMPLETED", FailureCode.OTHER),
    ("SOMETHING_NEW", FailureCode.OTHER),
]


@pytest.mark.parametrize(("word", "code"), REASONS)
@pytest.mark.parametrize("as_object", [False, True])
def test_a_failed_payment_says_why_as_text_or_as_an_object(
    word: str, code: FailureCode, *, as_object: bool
) -> None:
    reason = {"code": word, "message": "…"} if as_object else word
    seen = checked(Answer(200, {}, a_status("FAILED", reason=reason)))
    assert seen.verdict is Verdict.FAILED
    assert seen.failure is not None
    assert (seen.failure.code, seen.failure.provider_code) == (code, word.strip())


@pytest.mark.parametrize("reason", [None, 7, [], {}, {"code": None}, ""])
def test_a_failed_payment_without_a_reason_has_failed_all_the_same(reason: object) -> None:
    seen = checked(Answer(200, {}, a_status("FAILED", reason=reason)))
    assert seen.verdict is Verdict.FAILED
    assert seen.failure is not None
    assert seen.failure.code is FailureCode.OTHER


def test_a_providers_word_can_always_be_stored() -> None:
    seen = checked(Answer(200, {}, a_status("FAILED", reason="A\x00B\ud800" + "C" * 500)))
    assert seen.failure is not None
    assert seen.failure.provider_code == "AB" + "C" * 98


ODD_ANSWERS = [
    Answer(200, {}, b""),
    Answer(200, {}, HTML),
    Answer(200, {}, FIREWALL),
    Answer(200, {}, b"null"),
    Answer(200, {}, b"[]"),
    Answer(200, {}, b'"FAILED"'),
    Answer(200, {}, b"FAILED"),
    Answer(200, {}, b'{"status":"FAILED"'),
    Answer(200, {}, b'{"status":"FAILED"} trailing'),
    Answer(200, {}, b'{"status":"FAILED"}', truncated=True),
    Answer(200, {}, b'{"status":"PENDING","status":"FAILED"}'),
    Answer(200, {}, b'{"status":"FAILED","reason":{"code":"A","code":"B"}}'),
    Answer(200, {}, b'{"status":"FAILED","amount":NaN}'),
    Answer(200, {}, b'{"status":"FAILED","amount":-Infinity}'),
    Answer(200, {}, b'{"status":"FAILED","x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    Answer(200, {}, b"\xff\xfe" + '{"status":"FAILED"}'.encode("utf-16-le")),
    Answer(200, {}, b'{"status":"FAILED","note":"\xe9"}'),
    Answer(200, {}, b'{"status":["FAILED"]}'),
    Answer(200, {}, b'{"status":{"FAILED":1}}'),
    Answer(200, {}, b'{"status":true}'),
    Answer(200, {}, b'{"status":null}'),
    Answer(200, {}, a_status("failed")),
    Answer(200, {}, a_status(" FAILED")),
    Answer(200, {}, a_status("REJECTED")),
    Answer(200, {}, a_status("TIMEOUT")),
    Answer(200, {}, a_status("CREATED")),
    Answer(200, {}, a_status("")),
    Answer(202, {}, a_status("FAILED")),
    Answer(400, {}, a_status("FAILED")),
    Answer(400, {}, b""),
    Answer(403, {}, b"FORBIDDEN IP"),
    Answer(404, {}, AZURE_404),
    Answer(404, {}, HTML),
    Answer(404, {}, b""),
    Answer(409, {}, DUPLICATE),
    Answer(500, {}, an_error("INTERNAL_PROCESSING_ERROR")),
    Answer(500, {}, an_error("PAYER_NOT_FOUND")),
    Answer(500, {}, NOT_FOUND),
    Answer(500, {}, a_status("FAILED")),
    Answer(503, {}, an_error("SERVICE_UNAVAILABLE")),
    Silence("connection_refused", sent=False),
    Silence("broken_answer", sent=True),
]


@pytest.mark.parametrize("odd", ODD_ANSWERS, ids=range(len(ODD_ANSWERS)))
def test_what_is_no_answer_about_the_payment_is_unknown(odd: Answer | Silence) -> None:
    assert checked(odd).verdict is Verdict.UNKNOWN


def test_not_found_is_only_mtns_own_word_for_it() -> None:
    assert checked(Answer(404, {}, NOT_FOUND)).verdict is Verdict.NOT_FOUND


# --- a refused token ------------------------------------------------------------------------

UNAUTHORIZED = Answer(401, {}, AZURE_401)


def test_a_refused_token_is_minted_anew_and_the_same_request_sent_once_more() -> None:
    newer = Answer(200, {}, TOKEN_BODY.replace(b"t0ken", b"newer"))
    wire = ScriptedWire([TOKEN, UNAUTHORIZED, newer, Answer(202, {}, b"")])
    assert an_adapter().submit(an_order(), an_account(), wire).verdict is Verdict.PENDING
    _, first, _, second = wire.calls
    assert first.headers["Authorization"] == "Bearer t0ken"
    assert second.headers["Authorization"] == "Bearer newer"
    assert first.headers["X-Reference-Id"] == second.headers["X-Reference-Id"] == str(REFERENCE)
    assert first.body == second.body


@pytest.mark.parametrize(
    "second",
    [
        [TOKEN, UNAUTHORIZED],
        [TOKEN, Silence("timeout", sent=True)],
        [TOKEN, Silence("connection_refused", sent=False)],
        [TOKEN, Answer(429, {}, b"")],
        [TOKEN, LeaseLost()],
        [Answer(500, {}, b'{"error":"login_failed"}')],
        [Silence("timeout", sent=True)],
        [LeaseLost()],
    ],
    ids=["401", "timeout", "refused", "429", "lease", "login", "no token", "lease before token"],
)
def test_after_a_401_a_submission_is_never_again_proven_unsent(second: list[Reply]) -> None:
    seen = submitted(UNAUTHORIZED, *second)
    assert seen.verdict is Verdict.UNKNOWN


def test_a_duplicate_after_a_401_is_a_duplicate() -> None:
    assert submitted(UNAUTHORIZED, TOKEN, Answer(409, {}, DUPLICATE)).verdict is Verdict.DUPLICATE


def test_a_status_question_survives_a_refused_token() -> None:
    paid = Answer(200, {}, a_status("SUCCESSFUL"))
    assert checked(UNAUTHORIZED, TOKEN, paid).verdict is Verdict.SUCCESSFUL
    assert checked(UNAUTHORIZED, TOKEN, UNAUTHORIZED).verdict is Verdict.UNKNOWN


def test_a_lease_that_ends_before_anything_left_is_said_so() -> None:
    with pytest.raises(LeaseLost):
        submitted(LeaseLost())


# --- the token --------------------------------------------------------------------------------


def test_the_token_is_asked_for_with_an_empty_body_and_its_length() -> None:
    wire = ScriptedWire([TOKEN])
    assert an_adapter().prepare(an_account(base_url="https://mtn.test/"), wire) is None
    (call,) = wire.calls
    assert (call.method, call.url) == ("POST", "https://mtn.test/collection/token/")
    assert call.headers == {
        "Authorization": "Basic dXNlcj06a2V5",
        "Ocp-Apim-Subscription-Key": "sub-key",
        "X-Target-Environment": "sandbox",
        "Content-Length": "0",
    }
    assert (call.body, call.timeout_s) == (None, 30.0)


def test_one_token_serves_many_calls() -> None:
    wire = ScriptedWire([TOKEN, Answer(202, {}, b""), Answer(200, {}, a_status("PENDING"))])
    adapter, account = an_adapter(), an_account()
    assert adapter.prepare(account, wire) is None
    adapter.submit(an_order(), account, wire)
    adapter.check(an_order(), account, wire)
    assert [call.method for call in wire.calls] == ["POST", "POST", "GET"]


REFUSED_TOKENS = [
    Answer(401, {}, b'{"error":"invalid_client"}'),
    Answer(500, {}, b'{"error":"login_failed"}'),
    Answer(400, {}, b'{"error":"Invalid or missing X-Target-Environment header"}'),
    Answer(403, {}, HTML),
]
MISSING_TOKENS: list[Answer | Silence] = [
    Silence("timeout", sent=True),
    Silence("connection_refused", sent=False),
    Answer(411, {}, b""),
    Answer(429, {"retry-after": "9"}, b""),
    Answer(500, {}, b""),
    Answer(503, {}, HTML),
    Answer(200, {}, FIREWALL),
    Answer(200, {}, b"{}"),
    Answer(200, {}, b'{"access_token":null,"expires_in":3600}'),
    Answer(200, {}, b'{"access_token":"","expires_in":3600}'),
    Answer(200, {}, b'{"access_token":"a b","expires_in":3600}'),
    Answer(200, {}, b'{"access_token":"a\\r\\nX: y","expires_in":3600}'),
    Answer(200, {}, b'{"access_token":"abc"}'),
    Answer(200, {}, b'{"access_token":"abc","expires_in":0}'),
    Answer(200, {}, b'{"access_token":"abc","expires_in":-5}'),
    Answer(200, {}, b'{"access_token":"abc","expires_in":1e9}'),
    Answer(200, {}, b'{"access_token":"abc","expires_in":"soon"}'),
    Answer(202, {}, TOKEN_BODY),
]


@pytest.mark.parametrize("reply", [*REFUSED_TOKENS, *MISSING_TOKENS])
def test_without_a_token_nothing_is_sent(reply: Answer | Silence) -> None:
    wire = ScriptedWire([reply])
    adapter, account = an_adapter(), an_account()
    not_ready = adapter.prepare(account, wire)
    assert not_ready is not None
    assert not_ready.verdict is Verdict.NOT_SENT
    # It isn't asked for again at once either.
    assert adapter.submit(an_order(), account, wire).verdict is Verdict.NOT_SENT
    assert adapter.check(an_order(), account, wire).verdict is Verdict.UNKNOWN
    assert len(wire.calls) == 1


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
    odd = Answer(200, {}, b'{"access_token":"s3cret","expires_in":"soon"}')
    seen = an_adapter().prepare(an_account(), ScriptedWire([odd]))
    assert seen is not None
    assert seen.body == b""


# --- what we send -------------------------------------------------------------------------------


def test_a_submission_is_exactly_what_the_portal_describes() -> None:
    wire = ScriptedWire([TOKEN, Answer(202, {}, b"")])
    order = an_order(
        payer_message="Rent May", payee_note="Flat 3", callback_url="https://us.test/callbacks/x/y"
    )
    an_adapter().submit(order, an_account("mtnuganda"), wire)
    call = wire.calls[-1]
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
    wire = ScriptedWire([TOKEN, Answer(202, {}, b"")])
    order = PaymentOrder(
        reference=REFERENCE,
        payment_id=PAYMENT_ID,
        money=Money(1000, "UGX"),
        payer=Msisdn("256772123456"),
        callback_url=callback_url,
    )
    an_adapter().submit(order, an_account(), wire)
    call = wire.calls[-1]
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
    wire = ScriptedWire([TOKEN, Answer(202, {}, b"")])
    an_adapter().submit(an_order(money), an_account(), wire)
    assert json.loads(wire.calls[-1].body or b"")["amount"] == amount


def test_a_status_question_is_exactly_what_the_portal_describes() -> None:
    wire = ScriptedWire([TOKEN, Answer(200, {}, a_status("PENDING"))])
    an_adapter().check(an_order(), an_account(), wire)
    call = wire.calls[-1]
    assert call.method == "GET"
    assert call.url == f"https://mtn.test/collection/v1_0/requesttopay/{REFERENCE}"
    assert call.headers == {
        "Authorization": "Bearer t0ken",
        "Ocp-Apim-Subscription-Key": "sub-key",
        "X-Target-Environment": "sandbox",
    }
    assert call.body is None


def test_no_call_shows_its_headers_or_its_body() -> None:
    wire = ScriptedWire([TOKEN, Answer(202, {}, b"")])
    an_adapter().submit(an_order(), an_account(), wire)
    shown = repr(wire.calls)
    for secret in ("sub-key", "t0ken", "dXNlcj06a2V5", "256772123456"):
        assert secret not in shown


# --- probe, terms --------------------------------------------------------------------------------

BALANCE = Answer(200, {}, b'{"availableBalance":"15000","currency":"UGX"}')


@pytest.mark.parametrize(
    ("replies", "verdict"),
    [
        ([TOKEN, BALANCE], Verdict.PENDING),
        ([TOKEN, UNAUTHORIZED], Verdict.REFUSED),
        ([TOKEN, Answer(403, {}, b"FORBIDDEN IP")], Verdict.REFUSED),
        ([TOKEN, Answer(500, {}, an_error("NOT_ALLOWED_TARGET_ENVIRONMENT"))], Verdict.REFUSED),
        ([TOKEN, Answer(500, {}, an_error("INTERNAL_PROCESSING_ERROR"))], Verdict.UNKNOWN),
        ([TOKEN, Answer(200, {}, HTML)], Verdict.UNKNOWN),
        ([TOKEN, Answer(202, {}, b"")], Verdict.UNKNOWN),
        ([TOKEN, Answer(429, {}, b"")], Verdict.UNKNOWN),
        ([TOKEN, Silence("timeout", sent=True)], Verdict.UNKNOWN),
        ([REFUSED_TOKENS[0]], Verdict.REFUSED),
        ([REFUSED_TOKENS[1]], Verdict.REFUSED),
        ([Silence("timeout", sent=True)], Verdict.NOT_SENT),
    ],
)
def test_a_probe_says_whether_the_credentials_work(replies: list[Reply], verdict: Verdict) -> None:
    assert an_adapter().probe(an_account(), ScriptedWire(replies)).verdict is verdict


def test_a_probe_never_trusts_a_token_that_it_has() -> None:
    wire = ScriptedWire([TOKEN, TOKEN, BALANCE])
    adapter, account = an_adapter(), an_account()
    assert adapter.prepare(account, wire) is None
    adapter.probe(account, wire)
    assert [call.url.rsplit("/", 2)[1] for call in wire.calls] == ["token", "token", "account"]


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


def test_the_sandbox_takes_every_currency_of_a_market_and_any_country() -> None:
    terms = an_adapter().terms(an_account("sandbox"))
    assert set(terms.currencies) == {
        "EUR",
        "UGX",
        "GHS",
        "XOF",
        "ZMW",
        "XAF",
        "SZL",
        "GNF",
        "ZAR",
        "LRD",
        "USD",
        "RWF",
        "NGN",
        "SSP",
    }
    assert (terms.country, terms.checks_per_s) == (None, None)


def test_an_unknown_target_environment_is_an_error() -> None:
    with pytest.raises(ValueError, match="mtnatlantis"):
        an_adapter().terms(an_account("mtnatlantis"))
