"""What is never seen: whole payer numbers, keys, credentials, tokens, in any log or in Redis (G8)."""

from __future__ import annotations

import requests

from tests.journeys.gateway import ANSWER_MAX_S, Gateway, new_payer
from tests.journeys.leaks import found_in, leaks_in_logs, secrets_of
from tests.journeys.overhearing import overheard


def test_neither_logs_nor_redis_ever_hold_a_secret_or_a_whole_number(gateway: Gateway) -> None:
    with overheard(gateway.stack.redis) as heard:
        _make_everyone_talk(gateway)
    words = "\n".join(heard)
    # The listener heard what it is there for: locks, limits, tokens and doorbells.
    assert all(name in words for name in ("idempotency:", "limit", "token:", "maramoja"))
    assert found_in(words, secrets_of(gateway)) == []
    assert leaks_in_logs(gateway) == []


def _make_everyone_talk(gateway: Gateway) -> None:
    """Payments that end well and badly, refusals, a provider in trouble, a database that goes."""
    gateway.provider.expire_tokens()
    for kind in ("garbage", "accept_then_reset", "waf_html_200", "refuse_400"):
        payer = new_payer()
        gateway.provider.fault(kind, match={"msisdn": payer})
        gateway.await_end(gateway.pay(payer=payer))
    paid = gateway.pay(payer="46733123451")
    gateway.await_end(paid)
    _send_what_is_refused(gateway)
    with gateway.holding_row(paid):
        # A callback that cannot be noted in time.
        requests.put(
            f"{gateway.stack.api_url}/callbacks/mtn_momo/{paid.reference}",
            data=paid.order["payer"],
            timeout=ANSWER_MAX_S,
        )
    open_ones = [gateway.pay() for _ in range(3)]
    gateway.stack.postgres.restart("immediate")
    # What was in hand at that moment rests until its lease is over.
    gateway.end_leases(*open_ones)
    gateway.await_end(gateway.pay(), *open_ones)


def _send_what_is_refused(gateway: Gateway) -> None:
    payer = gateway.order()["payer"]
    for document in (
        {"amount": "x", "currency": "EUR", "payer": payer},
        {"amount": 1, "currency": "EUR", "payer": f"{payer}0000"},
        {"amount": 1, "currency": "EUR", "payer": payer, "payee": payer},
        {"amount": 1, "currency": "EUR", "payer": payer, "metadata": {"number": payer}},
    ):
        for key in (gateway.api_key, gateway.api_key[:-1] + "0"):
            requests.post(
                gateway.url, json=document, headers={"X-API-Key": key}, timeout=ANSWER_MAX_S
            )
    requests.get(
        f"{gateway.url}?payer={payer}", headers={"X-API-Key": gateway.api_key}, timeout=ANSWER_MAX_S
    )
