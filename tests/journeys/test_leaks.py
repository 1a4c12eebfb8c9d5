"""Never seen in any log or in Redis: whole payer numbers, keys, credentials, tokens (G8).

Nor in an error response, nor in a metric; in the database only where tests/journeys/rests.py
gives a reason. tests/traces searches the spans.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import requests

from devstack.supervisor import wait_until
from tests.journeys.gateway import ANSWER_MAX_S, PATIENCE_S, Gateway, Paid, new_payer
from tests.journeys.leaks import found_in, leaks_in_logs, secrets_of
from tests.journeys.overhearing import overheard
from tests.journeys.own_account import give, opened_at
from tests.journeys.rests import all_of_redis, judged, leaks_in_database
from tests.webhooks.receiver import OK, Receiver, receiving

# MTN answers wrong credentials with either status.
_REFUSED = {401, 500}


# It runs ten commands of the gateway, each of which starts a process.
@pytest.mark.timeout(300)
def test_neither_logs_nor_redis_ever_hold_a_secret_or_a_whole_number(gateway: Gateway) -> None:
    with overheard(gateway.stack.redis) as heard:
        refusals = [*_make_everyone_talk(gateway), *_have_own_secrets_used(gateway)]
    words = "\n".join(heard)
    # The recording has what it is there for: locks, limits, tokens and notifications.
    assert all(
        name in words for name in ("idempotency:", "limit", "token:", "payments.process_due")
    )
    assert found_in(words, secrets_of(gateway)) == []
    assert leaks_in_logs(gateway) == []
    _assert_nothing_rests(gateway, refusals)


def _assert_nothing_rests(gateway: Gateway, refusals: list[str]) -> None:
    sought = secrets_of(gateway)
    assert len(refusals) >= 14
    assert found_in("\n".join(refusals), sought) == []
    with gateway.stack.redis.client() as server:
        kept = all_of_redis(server)
    # The token that the workers share is there, and encrypted.
    assert "token:" in kept
    assert found_in(kept, sought) == []
    figures = requests.get(f"{gateway.stack.api_url}/metrics", timeout=ANSWER_MAX_S).text
    assert "maramoja_callbacks" in figures
    assert found_in(figures, sought) == []
    wrong, idle = judged(leaks_in_database(gateway, sought))
    assert wrong == [], "seal it, or name it in tests/journeys/rests.py with a reason"
    assert idle == []


def _make_everyone_talk(gateway: Gateway) -> list[str]:
    """Payments that succeed and fail, refusals, a provider in trouble, a database that restarts.

    Returns the bodies of the refusals.
    """
    gateway.provider.expire_tokens()
    for kind in ("garbage", "accept_then_reset", "waf_html_200", "refuse_400"):
        payer = new_payer()
        gateway.provider.fault(kind, match={"msisdn": payer})
        gateway.await_end(gateway.pay(payer=payer))
    paid = gateway.pay(payer="46733123451")
    gateway.await_end(paid)
    refusals = _send_what_is_refused(gateway)
    # A forged callback, while the commands are still recorded.
    _call_back(gateway, gateway.pay())
    with gateway.holding_row(paid):
        # A callback that can't be stored in time.
        _call_back(gateway, paid)
    open_ones = [gateway.pay() for _ in range(3)]
    gateway.stack.postgres.restart("immediate")
    # What was under way at that moment waits until its lease ends.
    gateway.end_leases(*open_ones)
    gateway.await_end(gateway.pay(), *open_ones)
    return refusals


def _have_own_secrets_used(gateway: Gateway) -> list[str]:
    """A tenant with its own account, wrong at first, and a webhook that fails, then is rotated.

    Returns the bodies of the refusals.
    """
    own = Gateway(gateway.stack, tenant="own")
    own.payers = gateway.payers
    account = opened_at(gateway.stack.simulator_url)
    give(gateway, "own", replace(account, api_key=secrets.token_hex(16)))
    gateway.secrets |= {"the other tenant's API key": own.api_key}
    with receiving() as receiver, _told_at(own, receiver) as told:
        gateway.secrets |= told
        receiver.reply = lambda _received: (500, {}, 0.0)
        paid = own.pay()
        _await_refused_credentials(own)
        give(gateway, "own", account)
        own.await_end(paid)
        _await_failed_delivery(own, paid)
        receiver.reply = lambda _received: OK

        def is_told() -> bool:
            own.rows(
                "UPDATE webhook_deliveries SET next_attempt_at = now()"
                " WHERE status = 'pending' AND lease_until IS NULL"
            )
            return len(receiver.received) > 3

        wait_until(is_told, what="it isn't told", limit_s=PATIENCE_S)
    return _send_what_is_refused(own)


@contextmanager
def _told_at(own: Gateway, receiver: Receiver) -> Iterator[dict[str, str]]:
    """An endpoint at the receiver, with a rotated secret; both secrets, and the word in its URL."""
    word = secrets.token_hex(16)
    flask = own.stack.flask
    added = json.loads(flask("webhooks", "add", "own", f"{receiver.url}?word={word}", "--json"))
    rotated = json.loads(flask("webhooks", "rotate", "own", added["id"], "--json"))
    yield {
        "the webhook's first secret": added["secret"].removeprefix("whsec_"),
        "the webhook's second secret": rotated["secret"].removeprefix("whsec_"),
        "the word in a webhook's URL": word,
    }
    flask("webhooks", "remove", "own", added["id"])


def _await_refused_credentials(gateway: Gateway) -> None:
    """Wait until the provider has refused the workers a token."""

    def refused() -> bool:
        asked = gateway.provider.rows("requests")
        return any(one["operation"] == "token" and one["status"] in _REFUSED for one in asked)

    wait_until(refused, what="no credentials were refused", limit_s=PATIENCE_S)


def _await_failed_delivery(gateway: Gateway, paid: Paid) -> None:
    """Wait until the receiver has refused a delivery for this payment."""
    refused = (
        "SELECT 1 FROM webhook_attempts a JOIN webhook_deliveries d ON d.id = a.delivery_id"
        " WHERE d.payment_id = %s AND a.http_status = 500"
    )
    wait_until(
        lambda: bool(gateway.rows(refused, paid.id)), what="it is not refused", limit_s=PATIENCE_S
    )


def _call_back(gateway: Gateway, paid: Paid) -> None:
    requests.put(
        f"{gateway.stack.api_url}/callbacks/mtn_momo/{paid.reference}",
        data=paid.order["payer"],
        timeout=ANSWER_MAX_S,
    )


def _send_what_is_refused(gateway: Gateway) -> list[str]:
    answers = []
    payer = gateway.order()["payer"]
    nobodys = gateway.api_key[:-1] + ("0" if gateway.api_key[-1] != "0" else "1")
    for document in (
        {"amount": "x", "currency": "EUR", "payer": payer},
        {"amount": 1, "currency": "EUR", "payer": f"{payer}0000"},
        {"amount": 1, "currency": "EUR", "payer": payer, "payee": payer},
        {"amount": 1, "currency": "EUR", "payer": payer, "metadata": {"number": payer}},
    ):
        for key in (gateway.api_key, nobodys):
            answer = requests.post(
                gateway.url, json=document, headers={"X-API-Key": key}, timeout=ANSWER_MAX_S
            )
            if not answer.ok:
                answers.append(f"{answer.headers} {answer.text}")
    requests.get(
        f"{gateway.url}?payer={payer}", headers={"X-API-Key": gateway.api_key}, timeout=ANSWER_MAX_S
    )
    return answers
