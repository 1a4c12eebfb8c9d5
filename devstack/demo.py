"""One payment through the running stack's public API, sent twice and charged once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from uuid import uuid4

import requests

from devstack.errors import StackError

# MTN's sandbox has one currency.
ORDER = {"amount": 1000, "currency": "EUR", "payer": "256772123456", "external_id": ""}

# The payer approves at once: the time is for the worker and two calls to the simulator.
SUCCESS_MAX_S = 60.0
# The interval grows, so that polling stays well within the key's rate limit.
POLL_FIRST_S = 0.1
POLL_LAST_S = 2.0


@dataclass(frozen=True)
class Shown:
    """What the demo payment proved."""

    payment_id: str
    idempotency_key: str
    status: str
    seconds: float
    replay_status: int
    replayed: str
    same_bytes: bool
    movements: int | None

    @property
    def charged_once(self) -> bool:
        """Whether every promise is kept; the movements are known only of our own simulator."""
        return (
            self.status == "SUCCESSFUL"
            and self.replayed == "true"
            and self.same_bytes
            and self.movements in (1, None)
        )


def key_works(api_url: str, key: str) -> bool:
    """Whether the API still accepts this key."""
    answer = requests.get(
        f"{api_url}/api/v1/payments", params={"limit": "1"}, headers={"X-API-Key": key}, timeout=10
    )
    return answer.ok


def pay_once(*, api_url: str, key: str, simulator_url: str | None) -> Shown:
    """Send a payment, wait for its end, send it again, and count the provider's money movements."""
    idempotency_key = str(uuid4())
    order = {**ORDER, "external_id": f"demo-{idempotency_key[:8]}"}
    headers = {"X-API-Key": key, "Idempotency-Key": idempotency_key}
    url = f"{api_url}/api/v1/payments"
    started = time.monotonic()
    first = requests.post(url, json=order, headers=headers, timeout=30)
    if first.status_code != requests.codes.created:
        raise StackError(
            f"the demo payment was answered with {first.status_code}: {first.text[:500]}",
            remedy="see api.log among the logs",
        )
    payment = _await_end(f"{url}/{first.json()['id']}", headers)
    seconds = time.monotonic() - started
    again = requests.post(url, json=order, headers=headers, timeout=30)
    return Shown(
        payment_id=str(payment["id"]),
        idempotency_key=idempotency_key,
        status=str(payment["status"]),
        seconds=seconds,
        replay_status=again.status_code,
        replayed=again.headers.get("Idempotent-Replayed", "absent"),
        same_bytes=again.content == first.content,
        movements=_movements(simulator_url, str(payment["reference"])),
    )


def _await_end(url: str, headers: dict[str, str]) -> dict[str, object]:
    deadline = time.monotonic() + SUCCESS_MAX_S
    pause_s = POLL_FIRST_S
    while time.monotonic() < deadline:
        answer = requests.get(url, headers=headers, timeout=10)
        if answer.ok and answer.json()["status"] != "PENDING":
            payment: dict[str, object] = answer.json()
            return payment
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, POLL_LAST_S)
    raise StackError(
        f"the demo payment has not ended after {SUCCESS_MAX_S:.0f} s; last: {answer.text[:500]}",
        remedy="see worker-1.log and simulator.log among the logs",
    )


def _movements(simulator_url: str | None, reference: str) -> int | None:
    if simulator_url is None:
        return None
    ledger = requests.get(
        f"{simulator_url}/_admin/ledger", params={"reference": reference}, timeout=10
    )
    return len(ledger.json()["data"])
