"""Without tracing, a valid `traceparent` is stored with the payment; a wrong one is no error."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from flask import Flask

from tests.api.http_caller import HttpCaller, an_order, count_payments
from tests.builders import payment_row

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"
OTHER = f"00-{'1' * 32}-{'2' * 16}-00"


def kept(app: Flask, document: dict[str, str]) -> str | None:
    with app.app_context():
        return payment_row(UUID(document["id"])).traceparent


def test_it_rests_in_the_payments_row(app: Flask, caller: HttpCaller) -> None:
    answer = caller.post(an_order(), headers={"traceparent": GOOD, "tracestate": "vendor=1"})

    assert answer.status_code == 201
    assert kept(app, answer.get_json()) == GOOD
    assert TRACE not in answer.text


@pytest.mark.parametrize("wrong", ["x", "", GOOD.upper(), f"00-{'0' * 32}-{SPAN}-01", f"{GOOD}-x"])
def test_a_wrong_one_is_as_if_it_were_not_there(app: Flask, caller: HttpCaller, wrong: str) -> None:
    answer = caller.post(an_order(), headers={"traceparent": wrong})

    assert answer.status_code == 201
    assert kept(app, answer.get_json()) is None


def test_two_of_them_are_none(app: Flask, caller: HttpCaller) -> None:
    answer = caller.post(an_order(), headers={"traceparent": f"{GOOD},{OTHER}"})

    assert kept(app, answer.get_json()) is None


def test_one_request_leaves_nothing_to_the_next(app: Flask, caller: HttpCaller) -> None:
    caller.post(an_order(), headers={"traceparent": GOOD})

    assert kept(app, caller.post(an_order()).get_json()) is None


def test_it_is_no_part_of_the_request_that_a_key_stands_for(app: Flask, caller: HttpCaller) -> None:
    key = uuid4()
    first = caller.post(an_order(), key=key, headers={"traceparent": GOOD})
    again = caller.post(an_order(), key=key, headers={"traceparent": OTHER})

    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.data == first.data
    assert count_payments(caller) == 1
    assert kept(app, first.get_json()) == GOOD
