"""What MTN MoMo's answers prove: an answer in, an observation out. Without state or network.

Rules come from the developer portal (momodeveloper.mtn.com, "error codes", "best practices") and
from answers of its sandbox and production. An HTTP status alone decides little: a 500 may be a
plain refusal, and a 200 a firewall's page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from payments_app.kernel.clock import utc_now
from payments_app.kernel.http.messages import HttpResponse
from payments_app.kernel.http.retry_after import retry_after_s
from payments_app.providers import replies
from payments_app.providers.contract import Failure, FailureCode, Observation, Verdict
from payments_app.providers.tokens import IssuedToken

# A token goes into a header unchanged: text that can't be there is no token.
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,8192}")
# MTN says 3600 in `expires_in`. Without it (RFC 6749, 5.1, only recommends it), or if it is no
# number, a token is used for this long: far less than MTN's, and a new one costs one call.
TOKEN_LIFE_DEFAULT_S: Final = 300.0
# Reason codes (portal, "error codes", and production reports) → our codes. MTN sends others too.
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
# These are about a payment's outcome, or MTN's own errors: a payment may exist, so we check it,
# whatever the HTTP status is.
_DOUBTFUL_CODES: Final = frozenset(
    {
        "APPROVAL_REJECTED",
        "COULD_NOT_PERFORM_TRANSACTION",
        "EXPIRED",
        "INTERNAL_PROCESSING_ERROR",
        "PAYMENT_NOT_APPROVED",
        "RESOURCE_NOT_FOUND",
        "SERVICE_UNAVAILABLE",
        "TRANSACTION_CANCELED",
    }
)
# With these codes a 500 says that the request itself was not accepted.
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
# Answers to a submission that the HTTP status alone decides, if they are MTN's own. Others are
# UNKNOWN, and we check. MTN documents no 404, 411, 413 or 415 for this call: what we send is short
# JSON with its length, so they come from something in front of MTN and are not about the request.
_SUBMITTED: Final[Mapping[int, tuple[Verdict, str, FailureCode | None]]] = {
    202: (Verdict.PENDING, "accepted", None),
    400: (Verdict.REFUSED, "refused", FailureCode.REQUEST_REFUSED),
    403: (Verdict.REFUSED, "forbidden", FailureCode.PROVIDER_NOT_ALLOWED),
    409: (Verdict.DUPLICATE, "duplicate_reference", None),
}
# Reasons for answers that prove nothing.
_NO_NEWS: Final[Mapping[int, str]] = {
    401: "unauthorized",
    408: "unavailable",
    500: "provider_error",
    502: "unavailable",
    503: "unavailable",
    504: "unavailable",
}
# Azure API Management is in front of MTN. For a quota it sends 403 "Out of call volume quota. Quota
# will be replenished in 01:02:03.", for a rate 429 "Rate limit is exceeded. Try again in 5
# seconds.": the request went no further, and a later one will.
_PASSING: Final = re.compile(
    rb"\bout of [a-z ]{0,40}quota\b|\bquota (?:is |was )?exceeded\b|\brate limit\b"
)
_REPLENISHED: Final = re.compile(
    rb"\breplenished in (?:([0-9]{1,3})\.)?([0-9]{1,2}):([0-9]{2}):([0-9]{2})"
)
_TRY_AGAIN: Final = re.compile(rb"\btry again in ([0-9]{1,6}) second")
_STATUS_WORDS: Final[Mapping[str, Verdict]] = {
    "PENDING": Verdict.PENDING,
    "SUCCESSFUL": Verdict.SUCCESSFUL,
    "FAILED": Verdict.FAILED,
}


def token_issued(answer: HttpResponse) -> IssuedToken | Observation:
    """A token, or why there is none."""
    fields = replies.json_fields(answer)
    if answer.status == HTTPStatus.OK:
        token = _TOKEN.fullmatch(_text(fields, "access_token"))
        life = replies.number(fields.get("expires_in"))
        if token and (life is None or life >= 1):
            return IssuedToken(token[0], TOKEN_LIFE_DEFAULT_S if life is None else float(life))
        # Its body isn't stored: there may be a token in it.
        return replace(_seen(answer, Verdict.NOT_SENT, "token_unreadable"), body=b"")
    if _is_throttled(answer):
        return _seen(answer, Verdict.NOT_SENT, "token_throttled")
    error = replies.word(fields.get("error"))
    # Wrong credentials: 401 on the new platform, 500 login_failed on the old one and the sandbox.
    if answer.status in (400, 401, 403) or error == "login_failed":
        failure = Failure(FailureCode.PROVIDER_MISCONFIGURED, error)
        return _seen(answer, Verdict.NOT_SENT, "token_refused", failure)
    return _seen(answer, Verdict.NOT_SENT, "token_unavailable")


def submitted(answer: HttpResponse) -> Observation:
    """What an answer to a submission proves. Exactly 202 is accepted, no other 2xx."""
    code = _code(answer)
    if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR and code in _REFUSING_CODES:
        return _seen(answer, Verdict.REFUSED, "refused", Failure(_FAILURES[code], code))
    if _is_firewalls_page(answer):
        # The firewall answered instead of MTN, so nothing was created.
        failure = Failure(FailureCode.REQUEST_REFUSED, "REQUEST_REJECTED")
        return _seen(answer, Verdict.REFUSED, "firewall", failure)
    if _is_throttled(answer):
        return _seen(answer, Verdict.NOT_SENT, "throttled")
    status = HTTPStatus.CONFLICT if code == "RESOURCE_ALREADY_EXIST" else answer.status
    is_doubtful = code in _DOUBTFUL_CODES and status != HTTPStatus.ACCEPTED
    if status not in _SUBMITTED or is_doubtful or _is_by_another(answer):
        return _no_news(answer)
    verdict, reason, meaning = _SUBMITTED[status]
    refused = Failure(_FAILURES.get(code, meaning), code) if meaning else None
    return _seen(answer, verdict, reason, refused)


def checked(answer: HttpResponse) -> Observation:
    """What an answer to a status check proves; only a JSON body's `status` ends a payment."""
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
        # MTN always sends the amount; without it we can't compare it with the order.
        return _seen(answer, Verdict.UNKNOWN, "amount_unreadable")
    failure = _failure(fields.get("reason")) if verdict is Verdict.FAILED else None
    seen = _seen(answer, verdict, verdict.value.lower(), failure)
    transaction_id = replies.word(fields.get("financialTransactionId")) or None
    return replace(seen, amount=amount, provider_transaction_id=transaction_id)


def balance(answer: HttpResponse) -> Observation:
    """What the answer to a balance request says about its credentials."""
    if answer.status == HTTPStatus.OK and "availableBalance" in replies.json_fields(answer):
        return _seen(answer, Verdict.PENDING, "credentials_work")
    if answer.status == HTTPStatus.UNAUTHORIZED:
        # The token is new, so it is the subscription key.
        failure = Failure(FailureCode.PROVIDER_MISCONFIGURED, _code(answer))
        return _seen(answer, Verdict.REFUSED, "unauthorized", failure)
    seen = submitted(answer)
    return seen if seen.verdict is Verdict.REFUSED else _no_news(answer)


def _no_news(answer: HttpResponse) -> Observation:
    named = _NO_NEWS.get(answer.status, "unexpected_answer")
    return _seen(answer, Verdict.UNKNOWN, "throttled" if _is_throttled(answer) else named)


def _is_throttled(answer: HttpResponse) -> bool:
    """Whether this refusal is temporary: too many requests for now, from MTN or its gateway."""
    if answer.status == HTTPStatus.FORBIDDEN and not _code(answer):
        return bool(_PASSING.search(answer.body.lower()))
    return answer.status == HTTPStatus.TOO_MANY_REQUESTS


def _is_firewalls_page(answer: HttpResponse) -> bool:
    """Whether the firewall's page replaced MTN's answer, which is JSON or empty."""
    is_page = answer.status == HTTPStatus.OK and not replies.json_fields(answer)
    return is_page and b"request rejected" in answer.body.lower()


def _is_by_another(answer: HttpResponse) -> bool:
    """Whether something in front of MTN sent this refusal, for an undocumented reason.

    It is a page, or has the `statusCode` of Azure API Management. For a 403 the reasons are
    documented: "FORBIDDEN IP", and the gateway's page "403 Forbidden". An empty one is MTN's.
    """
    if answer.status == HTTPStatus.ACCEPTED or _code(answer):
        return False
    if answer.status == HTTPStatus.FORBIDDEN:
        return bool(answer.body) and b"forbidden" not in answer.body.lower()
    is_page = answer.body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    return is_page or "statusCode" in replies.json_fields(answer)


def _asked_pause_s(answer: HttpResponse) -> float | None:
    """How long the gateway wants us to wait, by its header or its text."""
    told_s = retry_after_s(answer.headers.get("retry-after"), utc_now())
    return told_s or (_named_s(answer) if _is_throttled(answer) else None)


def _named_s(answer: HttpResponse) -> float | None:
    words = answer.body.lower()
    if found := _REPLENISHED.search(words):
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    found = _TRY_AGAIN.search(words)
    return float(found[1]) if found else None


def _failure(reason: object) -> Failure:
    """The reason is a code, or (as the specification has it) an object with one."""
    code = replies.word(reason.get("code") if isinstance(reason, dict) else reason)
    return Failure(_FAILURES.get(code, FailureCode.OTHER), code)


def _text(fields: Mapping[str, object], name: str) -> str:
    """A string, or a number's original text; "" for anything else."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _code(answer: HttpResponse) -> str:
    """The error's code, of MTN (`code`); the gateway in front of it sends others or none."""
    return replies.word(replies.json_fields(answer).get("code"))


def _seen(
    answer: HttpResponse, verdict: Verdict, reason: str, failure: Failure | None = None
) -> Observation:
    return Observation(
        verdict,
        reason,
        http_status=answer.status,
        body=answer.body,
        failure=failure,
        retry_after_s=_asked_pause_s(answer),
        elapsed_s=answer.elapsed_s,
    )
