"""`provider_code` is a code: a text that may name the payer stays in the encrypted evidence."""

from __future__ import annotations

import json

import pytest

from payments_app.kernel.http.messages import HttpResponse
from payments_app.providers.contract import (
    UNREADABLE_CODE,
    Failure,
    FailureCode,
    Observation,
    Verdict,
)
from payments_app.providers.mtn_answers import balance, checked, submitted, token_issued
from tests.pure.mtn_script import FIREWALL, a_status

NO_CODES = [
    "256772123456",
    "0772-123-456",
    "PAYER_256.772.123.456_UNKNOWN",
    "1234567",
    "Payer 256772123456 has no wallet",
    "payer@example.com",
    "not enough funds",
    "MSISDN+256772123456",
    "A" * 65,
    "\u0662\u0665\u0666\u0667\u0667\u0662\u0661\u0662",
]


@pytest.mark.parametrize("word", NO_CODES)
def test_a_word_that_may_name_the_payer_is_not_told_and_the_verdict_stays(word: str) -> None:
    body = json.dumps({"code": word, "message": "no"}).encode()
    ended = checked(HttpResponse(200, {}, a_status("FAILED", reason=word)))
    as_object = checked(HttpResponse(200, {}, a_status("FAILED", reason={"code": word})))
    refused = submitted(HttpResponse(400, {}, body))
    no_token = token_issued(HttpResponse(401, {}, json.dumps({"error": word}).encode()))
    probed = balance(HttpResponse(401, {}, body))

    told = [ended, as_object, refused, no_token, probed]
    assert [seen.verdict for seen in told if isinstance(seen, Observation)] == [
        *(Verdict.FAILED, Verdict.FAILED, Verdict.REFUSED, Verdict.NOT_SENT, Verdict.REFUSED)
    ]
    for seen in told:
        assert isinstance(seen, Observation)
        assert seen.failure is not None
        assert seen.failure.provider_code == UNREADABLE_CODE
        assert word.encode() in seen.body or json.dumps(word).encode() in seen.body


@pytest.mark.parametrize("word", ["", "E-1004", "51", "123456", "http:400.3", "login_failed"])
def test_a_code_is_told_as_it_came(word: str) -> None:
    seen = submitted(HttpResponse(400, {}, json.dumps({"code": word}).encode()))
    assert seen.failure is not None
    assert seen.failure.provider_code == word


@pytest.mark.parametrize("word", NO_CODES)
def test_no_adapter_can_tell_it(word: str) -> None:
    assert Failure(FailureCode.OTHER, word).provider_code == UNREADABLE_CODE


def test_the_firewalls_page_has_a_code_too() -> None:
    seen = submitted(HttpResponse(200, {}, FIREWALL))
    assert seen.failure is not None
    assert seen.failure.provider_code == "REQUEST_REJECTED"
