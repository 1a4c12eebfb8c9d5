"""What is never seen: whole payer numbers, keys, credentials, tokens, in any log or in Redis (G8).

Nor in an answer to an error; and in the database only where tests/journeys/rests.py says why.
"""

from __future__ import annotations

import requests

from tests.journeys.gateway import ANSWER_MAX_S, Gateway, Paid, new_payer
from tests.journeys.leaks import found_in, leaks_in_logs, secrets_of
from tests.journeys.overhearing import overheard
from tests.journeys.rests import all_of_redis, judged, leaks_in_database


def test_neither_logs_nor_redis_ever_hold_a_secret_or_a_whole_number(gateway: Gateway) -> None:
    with overheard(gateway.stack.redis) as heard:
        refusals = _make_everyone_talk(gateway)
    words = "\n".join(heard)
    # The listener heard what it is there for: locks, limits, tokens and doorbells.
    assert all(name in words for name in ("idempotency:", "limit", "token:", "maramoja"))
    assert found_in(words, secrets_of(gateway)) == []
    assert leaks_in_logs(gateway) == []
    _assert_nothing_rests(gateway, refusals)


def _assert_nothing_rests(gateway: Gateway, refusals: list[str]) -> None:
    secrets = secrets_of(gateway)
    assert len(refusals) >= 7
    assert found_in("\n".join(refusals), secrets) == []
    with gateway.stack.redis.client() as server:
        kept = all_of_redis(server)
    # The token that the workers share is there, and encrypted.
    assert "token:" in kept
    assert found_in(kept, secrets) == []
    wrong, idle = judged(leaks_in_database(gateway, secrets))
    assert wrong == [], "seal it, or name it in tests/journeys/rests.py with a reason"
    assert idle == []


def _make_everyone_talk(gateway: Gateway) -> list[str]:
    """Payments that end well and badly, refusals, a provider in trouble, a database that goes.

    What the refusals said.
    """
    gateway.provider.expire_tokens()
    for kind in ("garbage", "accept_then_reset", "waf_html_200", "refuse_400"):
        payer = new_payer()
        gateway.provider.fault(kind, match={"msisdn": payer})
        gateway.await_end(gateway.pay(payer=payer))
    paid = gateway.pay(payer="46733123451")
    gateway.await_end(paid)
    refusals = _send_what_is_refused(gateway)
    # The provider's own word, forged, while we still listen.
    _call_back(gateway, gateway.pay())
    with gateway.holding_row(paid):
        # A callback that cannot be noted in time.
        _call_back(gateway, paid)
    open_ones = [gateway.pay() for _ in range(3)]
    gateway.stack.postgres.restart("immediate")
    # What was in hand at that moment rests until its lease is over.
    gateway.end_leases(*open_ones)
    gateway.await_end(gateway.pay(), *open_ones)
    return refusals


def _call_back(gateway: Gateway, paid: Paid) -> None:
    requests.put(
        f"{gateway.stack.api_url}/callbacks/mtn_momo/{paid.reference}",
        data=paid.order["payer"],
        timeout=ANSWER_MAX_S,
    )


def _send_what_is_refused(gateway: Gateway) -> list[str]:
    answers = []
    payer = gateway.order()["payer"]
    for document in (
        {"amount": "x", "currency": "EUR", "payer": payer},
        {"amount": 1, "currency": "EUR", "payer": f"{payer}0000"},
        {"amount": 1, "currency": "EUR", "payer": payer, "payee": payer},
        {"amount": 1, "currency": "EUR", "payer": payer, "metadata": {"number": payer}},
    ):
        for key in (gateway.api_key, gateway.api_key[:-1] + "0"):
            answer = requests.post(
                gateway.url, json=document, headers={"X-API-Key": key}, timeout=ANSWER_MAX_S
            )
            if not answer.ok:
                answers.append(f"{answer.headers} {answer.text}")
    requests.get(
        f"{gateway.url}?payer={payer}", headers={"X-API-Key": gateway.api_key}, timeout=ANSWER_MAX_S
    )
    return answers
