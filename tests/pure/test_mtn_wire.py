"""MTN MoMo: what each answer of its error tables proves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from payments_app.kernel.http.messages import HttpResponse, NoResponse
from payments_app.kernel.money import Money
from payments_app.providers.contract import (
    FailureCode,
    Observation,
    Verdict,
)
from tests.pure.mtn_script import (
    AZURE_404,
    DUPLICATE,
    FIREWALL,
    FORBIDDEN,
    HTML,
    NOT_FOUND,
    OUT_OF_QUOTA,
    a_status,
    an_azure,
    an_error,
    checked,
    submitted,
)

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
    (400, b"Bad Request", Verdict.REFUSED, FailureCode.REQUEST_REFUSED),
    (400, b'{"error":"Invalid or missing header"}', Verdict.REFUSED, FailureCode.REQUEST_REFUSED),
    (400, HTML, Verdict.UNKNOWN, None),
    (400, b"\xef\xbb\xbf\r\n" + HTML, Verdict.UNKNOWN, None),
    (400, an_azure(400, "Bad request"), Verdict.UNKNOWN, None),
    (400, an_error("INVALID_CURRENCY"), Verdict.REFUSED, FailureCode.CURRENCY_REFUSED),
    (403, b"FORBIDDEN IP", Verdict.REFUSED, FailureCode.PROVIDER_NOT_ALLOWED),
    (403, b"", Verdict.REFUSED, FailureCode.PROVIDER_NOT_ALLOWED),
    (403, an_error("NOT_ALLOWED"), Verdict.REFUSED, FailureCode.PROVIDER_NOT_ALLOWED),
    (403, an_azure(403, "Forbidden IP"), Verdict.REFUSED, FailureCode.PROVIDER_NOT_ALLOWED),
    (403, FORBIDDEN, Verdict.REFUSED, FailureCode.PROVIDER_NOT_ALLOWED),
    (403, HTML, Verdict.UNKNOWN, None),
    (403, an_azure(403, "Something new"), Verdict.UNKNOWN, None),
    (403, OUT_OF_QUOTA, Verdict.NOT_SENT, None),
    (403, an_azure(403, "Out of bandwidth quota."), Verdict.NOT_SENT, None),
    (403, b"Rate limit is exceeded.", Verdict.NOT_SENT, None),
    (404, AZURE_404, Verdict.UNKNOWN, None),
    (404, NOT_FOUND, Verdict.UNKNOWN, None),
    (405, b"", Verdict.UNKNOWN, None),
    (408, b"", Verdict.UNKNOWN, None),
    (409, DUPLICATE, Verdict.DUPLICATE, None),
    (409, b"", Verdict.DUPLICATE, None),
    (409, HTML, Verdict.UNKNOWN, None),
    (411, b"", Verdict.UNKNOWN, None),
    (413, b"", Verdict.UNKNOWN, None),
    (413, an_azure(413, "Request Entity Too Large"), Verdict.UNKNOWN, None),
    (415, b"", Verdict.UNKNOWN, None),
    (429, b"", Verdict.NOT_SENT, None),
    (429, HTML, Verdict.NOT_SENT, None),
    (429, an_azure(429, "Rate limit is exceeded. Try again in 7 seconds."), Verdict.NOT_SENT, None),
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
    # These codes are about a payment that exists, so its status must be checked.
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
    seen = submitted(HttpResponse(status, {}, body, elapsed_s=0.5))
    assert seen.verdict is verdict
    assert (seen.failure.code if seen.failure else None) is failure
    assert (seen.http_status, seen.body, seen.elapsed_s) == (status, body, 0.5)


def test_no_answer_can_end_a_payment_at_submission() -> None:
    for status, body, _, _ in SUBMISSIONS:
        assert submitted(HttpResponse(status, {}, body)).verdict not in (
            Verdict.SUCCESSFUL,
            Verdict.FAILED,
        )


def test_a_refusal_keeps_the_providers_own_word() -> None:
    seen = submitted(HttpResponse(500, {}, an_error("INVALID_CURRENCY")))
    assert seen.failure is not None
    assert seen.failure.provider_code == "INVALID_CURRENCY"


@pytest.mark.parametrize("ask", [submitted, checked])
def test_silence_after_sending_is_unknown(ask: Callable[..., Observation]) -> None:
    assert ask(NoResponse("timeout", sent=True)).verdict is Verdict.UNKNOWN


def test_a_submission_that_never_left_may_be_repeated() -> None:
    assert submitted(NoResponse("connection_refused", sent=False)).verdict is Verdict.NOT_SENT


@pytest.mark.parametrize(
    ("status", "words", "wait_s"),
    [
        (403, "Out of call volume quota. Quota will be replenished in 00:00:05.", 5.0),
        (403, "Out of call volume quota. Quota will be replenished in 11:22:33.", 40_953.0),
        (403, "Out of bandwidth quota. Quota will be replenished in 2.00:00:01.", 172_801.0),
        (403, "Out of call volume quota.", None),
        (429, "Rate limit is exceeded. Try again in 7 seconds.", 7.0),
        (429, "Rate limit is exceeded. Try again in 1 second.", 1.0),
    ],
)
def test_the_gateways_words_say_when_to_come_back(
    status: int, words: str, wait_s: float | None
) -> None:
    answer = HttpResponse(status, {}, an_azure(status, words))
    assert (submitted(answer).verdict, submitted(answer).reason) == (Verdict.NOT_SENT, "throttled")
    assert submitted(answer).retry_after_s == wait_s
    assert (checked(answer).verdict, checked(answer).reason) == (Verdict.UNKNOWN, "throttled")
    assert checked(answer).retry_after_s == wait_s
    with_header = replace(answer, headers={"retry-after": "9"})
    assert submitted(with_header).retry_after_s == 9.0


def test_throttled_says_when_to_come_back() -> None:
    throttled = HttpResponse(429, {"retry-after": "7"}, b"")
    assert submitted(throttled).retry_after_s == 7.0
    assert checked(throttled).retry_after_s == 7.0
    assert checked(throttled).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "1e9", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_that_cannot_be_used_is_none(value: str) -> None:
    assert submitted(HttpResponse(429, {"retry-after": value}, b"")).retry_after_s is None


# --- check --------------------------------------------------------------------------------


def test_a_paid_payment_is_successful_with_amount_and_transaction_id() -> None:
    seen = checked(HttpResponse(200, {}, a_status("SUCCESSFUL", financialTransactionId=1234567)))
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
        ("1.0E7", "UGX", Money(10_000_000, "UGX")),
        ('"1.0E7"', "UGX", Money(10_000_000, "UGX")),
        ("1e3", "UGX", Money(1000, "UGX")),
        ("10e+2", "UGX", Money(1000, "UGX")),
        ("100000.0e-2", "UGX", Money(1000, "UGX")),
        ("1000." + "0" * 5000, "UGX", Money(1000, "UGX")),
        ("610E-2", "EUR", Money(610, "EUR")),
        ("0e999999999", "UGX", Money(0, "UGX")),
        # A float holds none of these.
        ("9007199254740.93", "EUR", Money(900_719_925_474_093, "EUR")),
        ("999999999999999", "UGX", Money(999_999_999_999_999, "UGX")),
        ('"100.98"', "EUR", Money(10098, "EUR")),
    ],
)
def test_the_amount_is_read_exactly_as_text_or_number(
    amount: str, currency: str, money: Money
) -> None:
    body = f'{{"status":"SUCCESSFUL","amount":{amount},"currency":"{currency}"}}'
    assert checked(HttpResponse(200, {}, body.encode())).amount == money


@pytest.mark.parametrize(
    "members",
    [
        "",
        ',"amount":"1000"',
        ',"currency":"UGX"',
        ',"amount":null,"currency":"UGX"',
        ',"amount":true,"currency":"UGX"',
        ',"amount":"0.5","currency":"UGX"',
        ',"amount":" 1000","currency":"UGX"',
        ',"amount":"01000","currency":"UGX"',
        ',"amount":"+1000","currency":"UGX"',
        ',"amount":"1000.","currency":"UGX"',
        ',"amount":"\u0661000","currency":"UGX"',
        ',"amount":1000.0000000000000000000000000000000001,"currency":"UGX"',
        ',"amount":1e-3,"currency":"UGX"',
        ',"amount":1e999999999,"currency":"UGX"',
        ',"amount":1e-999999999,"currency":"UGX"',
        ',"amount":1e99999999999999999999999,"currency":"UGX"',
        ',"amount":-1000,"currency":"UGX"',
        ',"amount":"1,000","currency":"UGX"',
        ',"amount":"1000","currency":"XXX"',
        ',"amount":{"value":"1000"},"currency":"UGX"',
        ',"amount":' + "9" * 5000 + ',"currency":"UGX"',
    ],
)
def test_paid_without_a_readable_amount_is_unknown(members: str) -> None:
    seen = checked(HttpResponse(200, {}, f'{{"status":"SUCCESSFUL"{members}}}'.encode()))
    assert (seen.verdict, seen.amount) == (Verdict.UNKNOWN, None)


def test_pending_is_pending() -> None:
    assert checked(HttpResponse(200, {}, a_status("PENDING"))).verdict is Verdict.PENDING


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
    seen = checked(HttpResponse(200, {}, a_status("FAILED", reason=reason)))
    assert seen.verdict is Verdict.FAILED
    assert seen.failure is not None
    assert (seen.failure.code, seen.failure.provider_code) == (code, word.strip())


@pytest.mark.parametrize("reason", [None, 7, [], {}, {"code": None}, ""])
def test_a_failed_payment_without_a_reason_has_failed_all_the_same(reason: object) -> None:
    seen = checked(HttpResponse(200, {}, a_status("FAILED", reason=reason)))
    assert seen.verdict is Verdict.FAILED
    assert seen.failure is not None
    assert seen.failure.code is FailureCode.OTHER


def test_a_providers_word_can_always_be_stored() -> None:
    seen = checked(HttpResponse(200, {}, a_status("FAILED", reason="A\x00B\ud800" + "C" * 62)))
    assert seen.failure is not None
    assert seen.failure.provider_code == "AB" + "C" * 62


def test_a_byte_order_mark_is_ignored() -> None:
    assert (
        checked(HttpResponse(200, {}, b"\xef\xbb\xbf" + a_status("PENDING"))).verdict
        is Verdict.PENDING
    )


@pytest.mark.parametrize(
    ("answer", "is_unread"),
    [
        (HttpResponse(200, {}, b'{"status":"SUCC'), True),
        (HttpResponse(200, {}, a_status("ONGOING")), True),
        (HttpResponse(200, {}, b'{"status":"SUCCESSFUL","amount":"x","currency":"UGX"}'), True),
        (HttpResponse(404, {}, HTML), True),
        (HttpResponse(403, {}, b"FORBIDDEN IP"), True),
        (NoResponse("broken_answer", sent=True), True),
        (HttpResponse(200, {}, a_status("PENDING")), False),
        (HttpResponse(404, {}, NOT_FOUND), False),
        (HttpResponse(429, {}, b""), False),
        (HttpResponse(403, {}, OUT_OF_QUOTA), False),
        (HttpResponse(500, {}, b""), False),
        (HttpResponse(502, {}, HTML), False),
        (HttpResponse(503, {}, HTML), False),
        (HttpResponse(504, {}, HTML), False),
        (NoResponse("timeout", sent=True), False),
        (NoResponse("connection_lost", sent=True), False),
    ],
)
def test_what_could_not_be_read_is_told_from_what_is_no_news(
    answer: HttpResponse | NoResponse, *, is_unread: bool
) -> None:
    assert checked(answer).is_unread is is_unread


ODD_ANSWERS = [
    HttpResponse(200, {}, b""),
    HttpResponse(200, {}, HTML),
    HttpResponse(200, {}, FIREWALL),
    HttpResponse(200, {}, b"null"),
    HttpResponse(200, {}, b"[]"),
    HttpResponse(200, {}, b'"FAILED"'),
    HttpResponse(200, {}, b"FAILED"),
    HttpResponse(200, {}, b'{"status":"FAILED"'),
    HttpResponse(200, {}, b'{"status":"FAILED"} trailing'),
    HttpResponse(200, {}, b'{"status":"FAILED"}', truncated=True),
    HttpResponse(200, {}, b'{"status":"PENDING","status":"FAILED"}'),
    HttpResponse(200, {}, b'{"status":"FAILED","reason":{"code":"A","code":"B"}}'),
    HttpResponse(200, {}, b'{"status":"FAILED","amount":NaN}'),
    HttpResponse(200, {}, b'{"status":"FAILED","amount":-Infinity}'),
    HttpResponse(200, {}, b'{"status":"FAILED","x":' + b"[" * 30_000 + b"]" * 30_000 + b"}"),
    HttpResponse(200, {}, b"\xff\xfe" + '{"status":"FAILED"}'.encode("utf-16-le")),
    HttpResponse(200, {}, b'{"status":"FAILED","note":"\xe9"}'),
    HttpResponse(200, {}, b'{"status":["FAILED"]}'),
    HttpResponse(200, {}, b'{"status":{"FAILED":1}}'),
    HttpResponse(200, {}, b'{"status":true}'),
    HttpResponse(200, {}, b'{"status":null}'),
    HttpResponse(200, {}, a_status("failed")),
    HttpResponse(200, {}, a_status(" FAILED")),
    HttpResponse(200, {}, a_status("REJECTED")),
    HttpResponse(200, {}, a_status("TIMEOUT")),
    HttpResponse(200, {}, a_status("CREATED")),
    HttpResponse(200, {}, a_status("")),
    HttpResponse(202, {}, a_status("FAILED")),
    HttpResponse(400, {}, a_status("FAILED")),
    HttpResponse(400, {}, b""),
    HttpResponse(403, {}, b"FORBIDDEN IP"),
    HttpResponse(404, {}, AZURE_404),
    HttpResponse(404, {}, HTML),
    HttpResponse(404, {}, b""),
    HttpResponse(409, {}, DUPLICATE),
    HttpResponse(500, {}, an_error("INTERNAL_PROCESSING_ERROR")),
    HttpResponse(500, {}, an_error("PAYER_NOT_FOUND")),
    HttpResponse(500, {}, NOT_FOUND),
    HttpResponse(500, {}, a_status("FAILED")),
    HttpResponse(503, {}, an_error("SERVICE_UNAVAILABLE")),
    NoResponse("connection_refused", sent=False),
    NoResponse("broken_answer", sent=True),
]


@pytest.mark.parametrize("odd", ODD_ANSWERS, ids=range(len(ODD_ANSWERS)))
def test_what_is_no_answer_about_the_payment_is_unknown(odd: HttpResponse | NoResponse) -> None:
    assert checked(odd).verdict is Verdict.UNKNOWN


def test_not_found_is_only_mtns_own_word_for_it() -> None:
    assert checked(HttpResponse(404, {}, NOT_FOUND)).verdict is Verdict.NOT_FOUND
