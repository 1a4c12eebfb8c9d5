"""Signatures, schedule and patterns, checked against the specification, not against our code."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from payments_app.payments.states import Event
from payments_app.webhooks import schedule
from payments_app.webhooks.patterns import TEST_EVENT, TYPES, matches
from payments_app.webhooks.signature import new_secret, signed_headers

BODY = '{"type":"payment.successful","data":{"payer":"*********456","note":"é"}}'.encode()
ID = "msg_01a209ad416470479850453984927403"


def signed(*secrets: str, at: float | None = None) -> dict[str, str]:
    return signed_headers(secrets, message_id=ID, timestamp=int(at or time.time()), body=BODY)


def test_a_secret_is_32_random_bytes() -> None:
    secrets = {new_secret() for _ in range(100)}

    assert len(secrets) == 100
    assert {len(base64.b64decode(one.removeprefix("whsec_"))) for one in secrets} == {32}


def test_the_signature_is_the_specifications() -> None:
    secret = "whsec_" + base64.b64encode(b"k" * 32).decode()

    headers = signed(secret, at=1_700_000_000)

    content = f"{ID}.1700000000.".encode() + BODY
    wanted = base64.b64encode(hmac.new(b"k" * 32, content, hashlib.sha256).digest()).decode()
    assert headers == {
        "webhook-id": ID,
        "webhook-timestamp": "1700000000",
        "webhook-signature": f"v1,{wanted}",
    }


def test_during_a_rotation_both_secrets_verify() -> None:
    new, old = new_secret(), new_secret()

    headers = signed(new, old)

    for secret in (new, old):
        assert Webhook(secret).verify(BODY, headers)["type"] == "payment.successful"
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, headers)


@pytest.mark.parametrize("position", range(0, len(BODY), 7))
def test_a_flipped_bit_is_refused(position: int) -> None:
    secret = new_secret()
    bent = bytearray(BODY)
    bent[position] ^= 1

    with pytest.raises((WebhookVerificationError, UnicodeDecodeError)):
        Webhook(secret).verify(bytes(bent), signed(secret))


@pytest.mark.parametrize("aside_s", [-600, 600])
def test_a_stamp_ten_minutes_aside_is_refused(aside_s: int) -> None:
    secret = new_secret()

    with pytest.raises(WebhookVerificationError, match="too"):
        Webhook(secret).verify(BODY, signed(secret, at=time.time() + aside_s))


def test_the_schedule_is_the_one_that_is_documented() -> None:
    hours = 3600
    documented = [5, 30, 300, 1800, 2 * hours, 5 * hours, 10 * hours, 14 * hours, 20 * hours]
    documented.append(24 * hours)

    for attempts, wanted in enumerate(documented, start=1):
        pauses = [schedule.pause_s(attempts) for _ in range(50)]
        assert all(p is not None and wanted <= p <= wanted * 1.1 for p in pauses)
        assert len(set(pauses)) > 1, "what failed together would come back together"
    assert schedule.pause_s(len(documented) + 1) is None


def test_a_retry_after_makes_it_later_by_a_day_at_most() -> None:
    assert schedule.pause_s(1, retry_after_s=100) == 100
    assert schedule.pause_s(1, retry_after_s=10**8) == 24 * 3600
    soon = schedule.pause_s(5, retry_after_s=1)
    assert soon is not None
    assert soon >= 2 * 3600
    assert schedule.pause_s(11, retry_after_s=1) is None


@pytest.mark.parametrize(
    ("pattern", "told", "not_told"),
    [
        ("*", ["payment.successful", "webhook.test"], []),
        ("payment.*", ["payment.successful", "payment.accepted"], ["payments.x", "payout.failed"]),
        ("payment.successful", ["payment.successful"], ["payment.successfully", "payment"]),
    ],
)
def test_a_star_stands_for_the_rest_of_a_name(
    pattern: str, told: list[str], not_told: list[str]
) -> None:
    assert all(matches([pattern], one) for one in told)
    assert not any(matches([pattern], one) for one in not_told)


def test_the_types_are_those_of_the_story_that_a_tenant_is_told() -> None:
    ours = {Event.SUBMITTING, Event.NOT_SENT}

    assert set(TYPES) == {str(event) for event in Event if event not in ours} | {TEST_EVENT}
