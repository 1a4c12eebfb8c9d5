"""Callbacks: whatever is sent, a stranger learns nothing and can break nothing."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import pytest
from flask import Flask
from sqlalchemy import select

from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.payments.callbacks import opened_callback
from payments_app.payments.model import Callback
from payments_app.payments.payers import payer_of
from tests.api.http_caller import HttpCaller, MakeApp, new_caller
from tests.builders import keyring, payment_row


def stored(app: Flask, payment: dict[str, Any]) -> list[Callback]:
    own = select(Callback).where(Callback.payment_id == UUID(payment["id"]))
    with app.app_context(), transaction(EVERY_TENANT) as session:
        return list(session.scalars(own))


def said(app: Flask, callback: Callback) -> bytes | None:
    """The callback's body, decrypted."""
    with app.app_context():
        return opened_callback(payer_of(keyring(), payment_row(callback.payment_id)), callback.body)


def send(caller: HttpCaller, path: str, body: bytes = b"{}", method: str = "POST") -> None:
    """Send a callback as a provider does, without a key. Every one gets the same answer."""
    answer = caller.send(method, path, headers={"X-API-Key": None}, data=body)
    assert (answer.status_code, answer.get_data()) == (200, b""), path


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_one_about_a_payment_is_kept_as_it_came(caller: HttpCaller, method: str) -> None:
    payment = caller.pay()
    body = b'\xff\x00{"status": "SUCCESSFUL"}'

    send(caller, f"/callbacks/mtn_momo/{payment['reference']}", body, method)

    (callback,) = stored(caller.app, payment)
    assert (said(caller.app, callback), callback.method) == (body, method)
    assert caller.show(payment)["status"] == "PENDING"


def test_the_same_again_is_kept_once(caller: HttpCaller) -> None:
    payment = caller.pay()

    for _ in range(3):
        send(caller, f"/callbacks/mtn_momo/{payment['reference']}")

    assert len(stored(caller.app, payment)) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/callbacks/mtn_momo/not-a-reference",
        "/callbacks/mtn_momo/%00",
        f"/callbacks/mtn_momo/{uuid4().int:x}0",
        "/callbacks/nobody/5b0e6f1e-4f4c-4b7e-9d0b-0d9a6d1c2f3a",
        "/callbacks/%00/5b0e6f1e-4f4c-4b7e-9d0b-0d9a6d1c2f3a",
        "/callbacks/%C3%A9/5b0e6f1e-4f4c-4b7e-9d0b-0d9a6d1c2f3a",
        "/callbacks/" + "a" * 3000 + "/5b0e6f1e-4f4c-4b7e-9d0b-0d9a6d1c2f3a",
    ],
    ids=["no UUID", "NUL", "too long", "no rail", "NUL for a rail", "é for a rail", "long rail"],
)
def test_one_about_nothing_is_answered_alike(caller: HttpCaller, path: str) -> None:
    send(caller, path)


def test_one_about_another_rails_payment_is_not_kept(caller: HttpCaller) -> None:
    payment = caller.pay()

    send(caller, f"/callbacks/airtel_money/{payment['reference']}")

    assert stored(caller.app, payment) == []


def test_of_a_long_one_the_beginning_is_kept(caller: HttpCaller) -> None:
    payment = caller.pay()

    send(caller, f"/callbacks/mtn_momo/{payment['reference']}", b"x" * 200_000)

    (callback,) = stored(caller.app, payment)
    assert said(caller.app, callback) == b"x" * 16_384


def test_the_payments_id_is_not_its_reference(caller: HttpCaller) -> None:
    payment = caller.pay()

    send(caller, f"/callbacks/mtn_momo/{payment['id']}")

    assert stored(caller.app, payment) == []


def test_an_address_that_sends_too_many_is_told_so_whatever_they_are_about(
    make_app: MakeApp,
) -> None:
    caller = new_caller(make_app(rate_limit_callbacks="3 per minute"))
    payment = caller.pay()
    paths = [f"/callbacks/mtn_momo/{one}" for one in (payment["reference"], uuid4())]
    answers = [
        caller.send("POST", path, headers={"X-API-Key": None}, data=b"{}")
        for path in (*paths, *paths, *paths)
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429, 429]
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert caller.show(payment)["status"] == "PENDING", "a key's requests are not refused for it"


def test_one_from_elsewhere_is_answered_alike_and_not_kept(make_app: MakeApp) -> None:
    app = make_app(callback_networks=(ip_network("203.0.113.0/24"),))
    caller = new_caller(app)
    payment = caller.pay()
    path = f"/callbacks/mtn_momo/{payment['reference']}"

    send(caller, path)
    assert stored(app, payment) == []

    for place in ("203.0.113.7", "::ffff:203.0.113.8"):
        environ = {"REMOTE_ADDR": place}
        answer = app.test_client().post(path, data=place.encode(), environ_base=environ)
        assert answer.status_code == 200
    assert len(stored(app, payment)) == 2
