"""What MTN MoMo's answers prove. Pure: an answer in, an observation out.

Rules come from the developer portal (momodeveloper.mtn.com, "error codes", "best practices") and
from what its sandbox and production were seen to answer. An HTTP status alone decides little:
a 500 may be a plain refusal, and a 200 a firewall's page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from payments_app.kernel.wire import Answer
from payments_app.providers import replies
from payments_app.providers.contract import Failure, FailureCode, Observation, Verdict
from payments_app.providers.tokens import Minted

# A token goes into a header as it is: what can't stand there is no token.
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,8192}")
_SECONDS: Final = re.compile(r"[1-9][0-9]{0,6}")
# Reason codes (portal, "error codes", and production reports) → our words. Open: MTN sends others.
_FAILURES: Final[Mapping[str, FailureCode]] = {
    "APPROVAL_REJECTED": FailureCode.PAYER_REJECTED,
    "COULD_NOT_PERFORM_TRANSACTION": FailureCode.PAYER_DID_NOT_APPROVE,
    "EXPIRED": FailureCode.PAYER_DID_NOT_APPROVE,
    "INTERNAL_PROCESSING_ERROR": FailureCode.PROVIDER_ERROR,
    "INVALID_CALLBACK_URL_HOST": FailureCode.PROVIDER_MISCONFIGURED,
    "INVALID_CURRENCY": FailureCode.CURRENCY_REFUSED,
    "LOW_BALANCE_OR_PAYEE_LIMIT_REACHED_OR_NOT_ALLOWED": FailureCode.INSUFFICIENT_FUNDS,
    "NOT_ALLOWED": FailureCode.PROVIDER_NOT_ALLOWED,
    "NOT_ALLOWED_TARGET_ENVIRONMENT": FailureCode.PROVIDER_MISCONFIGURED,
    "NOT_ENOUGH_FUNDS": FailureCode.INSUFFICIENT_FUNDS,
    "PAYEE_LIMIT_REACHED": FailureCode.PAYEE_CANNOT_RECEIVE,
    "PAYEE_NOT_ALLOWED_TO_RECEIVE": FailureCode.PAYEE_CANNOT_RECEIVE,
    "PAYEE_NOT_FOUND": FailureCode.PAYEE_NOT_FOUND,
    "PAYER_LIMIT_REACHED": FailureCode.PAYER_LIMIT_REACHED,
    "PAYER_NOT_FOUND": FailureCode.PAYER_NOT_FOUND,
    "PAYMENT_NOT_APPROVED": FailureCode.PAYER_DID_NOT_APPROVE,
    "SENDER_ACCOUNT_NOT_ACTIVE": FailureCode.PAYER_NOT_ACTIVE,
    "SERVICE_UNAVAILABLE": FailureCode.PROVIDER_UNAVAILABLE,
    "TRANSACTION_CANCELED": FailureCode.CANCELLED,
    "VALIDATION_ERROR": FailureCode.REQUEST_REFUSED,
}
# With these codes a 500 says that the request itself was not taken. Those that speak of a
# payment's fate (EXPIRED, APPROVAL_REJECTED …) would mean there is one: then we ask.
_REFUSING_CODES: Final = frozenset(
    {
        "INVALID_CALLBACK_URL_HOST",
        "INVALID_CURRENCY",
        "NOT_ALLOWED",
        "NOT_ALLOWED_TARGET_ENVIRONMENT",
        "NOT_ENOUGH_FUNDS",
        "PAYEE_NOT_ALLOWED_TO_RECEIVE",
        "PAYEE_NOT_FOUND",
        "PAYER_LIMIT_REACHED",
        "PAYER_NOT_FOUND",
    }
)
# Answers to a submission that HTTP's status alone decides. 411, 413 and 415 are refusals to
# process at all (RFC 9110, 15.5). A 404 isn't here: MTN describes none for this call, so it says
# no more than that some gateway had no route, and we ask.
_SUBMITTED: Final[Mapping[int, tuple[Verdict, str, FailureCode | None]]] = {
    202: (Verdict.PENDING, "accepted", None),
    400: (Verdict.REFUSED, "refused", FailureCode.REQUEST_REFUSED),
    403: (Verdict.REFUSED, "forbidden", FailureCode.PROVIDER_NOT_ALLOWED),
    409: (Verdict.DUPLICATE, "duplicate_reference", None),
    411: (Verdict.REFUSED, "refused", FailureCode.REQUEST_REFUSED),
    413: (Verdict.REFUSED, "refused", FailureCode.REQUEST_REFUSED),
    415: (Verdict.REFUSED, "refused", FailureCode.REQUEST_REFUSED),
    429: (Verdict.NOT_SENT, "throttled", None),
}
# Why an answer is no news.
_NO_NEWS: Final[Mapping[int, str]] = {
    401: "unauthorized",
    429: "throttled",
    500: "provider_error",
    503: "unavailable",
}
_STATUS_WORDS: Final[Mapping[str, Verdict]] = {
    "PENDING": Verdict.PENDING,
    "SUCCESSFUL": Verdict.SUCCESSFUL,
    "FAILED": Verdict.FAILED,
}


def minted(answer: Answer) -> Minted | Observation:
    """A token, or why there is none."""
    fields = replies.json_fields(answer)
    if answer.status == HTTPStatus.OK:
        token = _TOKEN.fullmatch(_text(fields, "access_token"))
        life = _SECONDS.fullmatch(_text(fields, "expires_in"))
        if token and life:
            return Minted(token[0], float(life[0]))
        # Its body isn't kept: there may be a token in it.
        return replace(_seen(answer, Verdict.NOT_SENT, "token_unreadable"), body=b"")
    error = replies.word(fields.get("error"))
    # Wrong credentials: 401 on the new platform, 500 login_failed on the old one and the sandbox.
    if answer.status in (400, 401, 403) or error == "login_failed":
        failure = Failure(FailureCode.PROVIDER_MISCONFIGURED, error)
        return _seen(answer, Verdict.NOT_SENT, "token_refused", failure)
    return _seen(answer, Verdict.NOT_SENT, "token_unavailable")


def submitted(answer: Answer) -> Observation:
    """What an answer to a submission proves. Exactly 202 is accepted, no other 2xx."""
    code = _code(answer)
    if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR and code in _REFUSING_CODES:
        return _seen(answer, Verdict.REFUSED, "refused", Failure(_FAILURES[code], code))
    if answer.status == HTTPStatus.OK and b"request rejected" in answer.body.lower():
        # The firewall's page: it comes instead of MTN, so nothing was created.
        failure = Failure(FailureCode.REQUEST_REFUSED, "Request Rejected")
        return _seen(answer, Verdict.REFUSED, "firewall", failure)
    status = HTTPStatus.CONFLICT if code == "RESOURCE_ALREADY_EXIST" else answer.status
    if status not in _SUBMITTED:
        return _no_news(answer)
    verdict, reason, meaning = _SUBMITTED[status]
    refused = Failure(_FAILURES.get(code, meaning), code) if meaning else None
    return _seen(answer, verdict, reason, refused)


def checked(answer: Answer) -> Observation:
    """What an answer to a question proves; a payment's end only by its own word in a JSON body."""
    if answer.status == HTTPStatus.NOT_FOUND and _code(answer) == "RESOURCE_NOT_FOUND":
        return _seen(answer, Verdict.NOT_FOUND, "not_found")
    if answer.status != HTTPStatus.OK:
        return _no_news(answer)
    fields = replies.json_fields(answer)
    verdict = _STATUS_WORDS.get(_text(fields, "status"), Verdict.UNKNOWN)
    amount = replies.money(fields.get("amount"), fields.get("currency"))
    if verdict is Verdict.UNKNOWN:
        return _seen(answer, Verdict.UNKNOWN, "unreadable")
    if verdict is Verdict.SUCCESSFUL and amount is None:
        # MTN always says how much; paid without that can't be held against what was asked.
        return _seen(answer, Verdict.UNKNOWN, "amount_unreadable")
    failure = _failure(fields.get("reason")) if verdict is Verdict.FAILED else None
    seen = _seen(answer, verdict, verdict.value.lower(), failure)
    transaction_id = replies.word(fields.get("financialTransactionId")) or None
    return replace(seen, amount=amount, provider_transaction_id=transaction_id)


def balance(answer: Answer) -> Observation:
    """What the balance's answer says about the credentials it was asked with."""
    if answer.status == HTTPStatus.OK and "availableBalance" in replies.json_fields(answer):
        return _seen(answer, Verdict.PENDING, "credentials_work")
    if answer.status == HTTPStatus.UNAUTHORIZED:
        # The token is new, so it is the subscription key.
        failure = Failure(FailureCode.PROVIDER_MISCONFIGURED, _code(answer))
        return _seen(answer, Verdict.REFUSED, "unauthorized", failure)
    seen = submitted(answer)
    return seen if seen.verdict is Verdict.REFUSED else _no_news(answer)


def _no_news(answer: Answer) -> Observation:
    return _seen(answer, Verdict.UNKNOWN, _NO_NEWS.get(answer.status, "unexpected_answer"))


def _failure(reason: object) -> Failure:
    """The reason is a code, or (as the specification has it) an object with one."""
    code = replies.word(reason.get("code") if isinstance(reason, dict) else reason)
    return Failure(_FAILURES.get(code, FailureCode.OTHER), code)


def _text(fields: Mapping[str, object], name: str) -> str:
    """A string or number as it stood there; "" for what is neither."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _code(answer: Answer) -> str:
    """The error's code, of MTN (`code`); the gateway in front of it sends others or none."""
    return replies.word(replies.json_fields(answer).get("code"))


def _seen(
    answer: Answer, verdict: Verdict, reason: str, failure: Failure | None = None
) -> Observation:
    return Observation(
        verdict,
        reason,
        http_status=answer.status,
        body=answer.body,
        failure=failure,
        retry_after_s=replies.retry_after_s(answer),
        elapsed_s=answer.elapsed_s,
    )
