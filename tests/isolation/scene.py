"""A victim with everything a tenant can have, its intruders, and how two responses are compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from flask import Flask
from werkzeug.test import TestResponse

from payments_app.payments import outbox
from payments_app.providers.contract import Mode
from payments_app.webhooks.deliveries import send_test
from payments_app.webhooks.endpoints import Owner
from tests.api.http_caller import PAYMENTS, HttpCaller, an_order, new_caller
from tests.builders import an_endpoint

VICTIMS_PAYER = "256772999888"
_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)")
# Headers that differ from one request to the next, and say nothing about the thing requested.
_PASSING = {"x-request-id", "date", "ratelimit", "ratelimit-remaining", "ratelimit-reset"}


@dataclass(frozen=True)
class Scene:
    """What the victim has, and its intruders."""

    victim: HttpCaller
    payment: dict[str, Any]
    order: dict[str, Any]
    idempotency_key: str
    cursor: str
    intruders: dict[str, HttpCaller]
    # The victim's ids, by the name of the path's parameter.
    ids: dict[str, str]

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no response to an intruder may contain, unless its request did."""
        found = (self.payment["id"], self.payment["reference"], self.payment["payer"])
        return (*found, self.payment["external_id"], self.victim.tenant.slug, *self.ids.values())


INTRUDERS = ("another tenant", "another tenant's live key", "the same tenant's live key")


def set_up(app: Flask) -> Scene:
    """A victim and three intruders, each tenant with payments of its own."""
    victim, other = new_caller(app), new_caller(app)
    key = str(uuid4())
    order = an_order(payer=VICTIMS_PAYER, external_id=f"victim-{uuid4().hex}", amount=4321)
    answer = victim.post(order, key=key)
    assert answer.status_code == 201, answer.text
    victim.pay()
    other.pay()
    other.pay()
    cursor = victim.get(f"{PAYMENTS}?limit=1").get_json()["next_cursor"]
    live = other.another_key(Mode.LIVE)
    intruders = dict(zip(INTRUDERS, (other, live, victim.another_key(Mode.LIVE)), strict=True))
    ids = {"payment_id": answer.get_json()["id"], **_told(app, victim)}
    return Scene(victim, answer.get_json(), order, key, cursor, intruders, ids)


def _told(app: Flask, victim: HttpCaller) -> dict[str, str]:
    """The victim's endpoint, with a delivery that is never sent. All events are published."""
    with app.app_context():
        outbox.publish_outbox()
        owner = Owner(victim.tenant.id, Mode.TEST)
        endpoint_id = an_endpoint(owner).endpoint.id
        delivery = send_test(owner, endpoint_id)
        return {"endpoint_id": str(endpoint_id), "delivery_id": str(delivery.id)}


def likeness(answer: TestResponse, hidden: Sequence[str] = ()) -> tuple[object, ...]:
    """The whole response without ids, times, and the values in the request (`hidden`)."""
    headers = sorted(
        (name.lower(), _masked(value, hidden))
        for name, value in answer.headers
        if name.lower() not in _PASSING
    )
    return answer.status_code, tuple(headers), _masked(answer.get_data(as_text=True), hidden)


def _masked(text: str, hidden: Sequence[str]) -> str:
    for said in hidden:
        text = text.replace(said, "<said>")
    return _TIME.sub("<time>", _ID.sub("<id>", text))
