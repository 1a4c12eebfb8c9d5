"""Lists: pages leave nothing out, repeat nothing, and show no other tenant's payments."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID, uuid4

import pytest
from werkzeug.test import TestResponse

from payments_app.providers.contract import Mode
from payments_app.tenants.keys import NewKey, issue_key
from payments_app.tenants.scopes import Scope
from tests.api.http_caller import (
    NOBODYS,
    PAYMENTS,
    Engine,
    HttpCaller,
    code_of,
    fields_of,
    new_caller,
)
from tests.builders import ANSWERS, PAYER, ScriptedProvider

OTHER_PAYER = "256782000111"


def page(caller: HttpCaller, **query: object) -> dict[str, Any]:
    wanted = {name: value for name, value in query.items() if value is not None}
    answer = caller.get(f"{PAYMENTS}?{urlencode(wanted)}")
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.get_json()
    return document


def ids(document: dict[str, Any]) -> list[str]:
    return [payment["id"] for payment in document["data"]]


def test_an_empty_list_is_a_page(caller: HttpCaller) -> None:
    assert page(caller) == {"data": [], "next_cursor": None}


def test_newest_come_first_and_look_as_they_do_alone(caller: HttpCaller) -> None:
    payments = [caller.pay() for _ in range(3)]

    listed = page(caller)

    assert ids(listed) == [payment["id"] for payment in reversed(payments)]
    assert listed["data"][0] == caller.show(payments[-1])


def test_a_walk_meets_each_once_while_others_are_added(caller: HttpCaller) -> None:
    before = [caller.pay()["id"] for _ in range(7)]
    met: list[str] = []
    cursor = None

    for _ in range(10):
        found = page(caller, limit=2, cursor=cursor)
        met += ids(found)
        caller.pay()
        cursor = found["next_cursor"]
        if cursor is None:
            break

    assert met == list(reversed(before))


def test_a_full_last_page_has_no_next_one(caller: HttpCaller) -> None:
    for _ in range(4):
        caller.pay()

    first = page(caller, limit=2)
    last = page(caller, limit=2, cursor=first["next_cursor"])

    assert len(last["data"]) == 2
    assert last["next_cursor"] is None


def test_payments_of_one_instant_are_walked_by_their_id(caller: HttpCaller) -> None:
    """The cursor holds the id too: two payments may be accepted in the same microsecond."""
    newer, older = caller.pay(), caller.pay()
    cursor = page(caller, limit=1)["next_cursor"]
    text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()

    assert text.endswith(older["id"])
    assert newer["id"] in ids(page(caller, cursor=cursor))


@pytest.mark.parametrize("limit", ["1", "20", "100"])
def test_a_page_has_at_most_what_was_asked_for(caller: HttpCaller, limit: str) -> None:
    caller.pay()
    caller.pay()

    assert len(page(caller, limit=limit)["data"]) == min(2, int(limit))


def test_a_page_has_20_unless_asked_otherwise(caller: HttpCaller) -> None:
    for _ in range(21):
        caller.pay()

    assert len(page(caller)["data"]) == 20


@pytest.mark.parametrize(
    "limit", ["0", "-1", "101", "1.5", "1e1", "x", "", " 1", "1_0", "٢", "999999999999999999999"]
)
def test_other_limits_are_refused(caller: HttpCaller, limit: str) -> None:
    assert fields_of(caller.get(f"{PAYMENTS}?limit={quote(limit)}")) == ["limit"]
    assert fields_of(caller.get(f"{PAYMENTS}/{uuid4()}/events?limit={quote(limit)}")) == ["limit"]


def forged(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "AAAA",
        "A" * 200,
        forged("2026-01-31T00:00:00+00:00|not-an-id"),
        forged(f"2026-01-31T00:00:00|{NOBODYS}"),
        forged(f"31.1.2026|{NOBODYS}"),
        forged("|"),
        forged("\x00|\x00"),
    ],
)
def test_a_cursor_that_no_list_gave_out_is_refused(caller: HttpCaller, cursor: str) -> None:
    refused = caller.get(f"{PAYMENTS}?cursor={quote(cursor)}")

    assert refused.status_code == 400
    assert code_of(refused) == "cursor_invalid"


@pytest.mark.parametrize("cursor", ["", "A" * 201, "a b", "%", "ü", "\x00"])
def test_what_has_not_even_the_form_of_a_cursor_is_refused(caller: HttpCaller, cursor: str) -> None:
    assert caller.get(f"{PAYMENTS}?cursor={quote(cursor)}").status_code in {400, 422}


@pytest.mark.parametrize(
    "when",
    ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999-23:59", "1969-12-31T23:59:59+00:00"],
)
def test_the_ends_of_time_are_cursors_and_bounds_like_others(caller: HttpCaller, when: str) -> None:
    caller.pay()

    assert page(caller, cursor=forged(f"{when}|{UUID(int=0)}"))["next_cursor"] is None
    assert page(caller, created_from=when)["next_cursor"] is None
    assert page(caller, created_to=when)["next_cursor"] is None


class TestFilters:
    """Each filter alone, then together."""

    @pytest.fixture(autouse=True)
    def payments(
        self, scripted_caller: HttpCaller, engine: Engine, provider: ScriptedProvider
    ) -> dict[str, str]:
        """Names to ids: one paid, one declined, one open."""
        paid = scripted_caller.pay(external_id="order-1", amount=10)
        engine.finish(paid)
        provider.checks = [ANSWERS["declined"]]
        declined = scripted_caller.pay(payer=OTHER_PAYER, amount="10.00", currency="UGX")
        engine.finish(declined)
        pending = scripted_caller.pay(amount=11, external_id="order-2")
        return {"paid": paid["id"], "declined": declined["id"], "open": pending["id"]}

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ({}, {"paid", "declined", "open"}),
            ({"status": "SUCCESSFUL"}, {"paid"}),
            ({"status": "FAILED"}, {"declined"}),
            ({"status": "PENDING"}, {"open"}),
            ({"payer": PAYER}, {"paid", "open"}),
            ({"payer": f"+{OTHER_PAYER}"}, {"declined"}),
            ({"payer": "256782000222"}, set()),
            ({"external_id": "order-1"}, {"paid"}),
            ({"external_id": "ORDER-1"}, set()),
            ({"currency": "EUR"}, {"paid", "open"}),
            ({"amount": "10", "currency": "EUR"}, {"paid"}),
            ({"amount": "10.00", "currency": "EUR"}, {"paid"}),
            ({"amount": "10", "currency": "UGX"}, {"declined"}),
            ({"amount": "1000", "currency": "UGX"}, set()),
            ({"payer": PAYER, "status": "PENDING"}, {"open"}),
            ({"payer": OTHER_PAYER, "status": "PENDING"}, set()),
            ({"payer": PAYER, "status": "SUCCESSFUL", "external_id": "order-1"}, {"paid"}),
        ],
    )
    def test_only_what_fits_is_listed(
        self,
        scripted_caller: HttpCaller,
        payments: dict[str, str],
        query: dict[str, str],
        expected: set[str],
    ) -> None:
        assert set(ids(page(scripted_caller, **query))) == {payments[name] for name in expected}

    def test_a_time_span_has_its_beginning_and_not_its_end(
        self, scripted_caller: HttpCaller
    ) -> None:
        newest, middle, oldest = page(scripted_caller)["data"]

        found = page(
            scripted_caller,
            created_from=middle["created_at"],
            created_to=newest["created_at"],
        )

        assert ids(found) == [middle["id"]]
        assert ids(page(scripted_caller, created_to=middle["created_at"])) == [oldest["id"]]

    def test_moments_are_read_in_any_offset(self, scripted_caller: HttpCaller) -> None:
        newest = page(scripted_caller)["data"][0]
        moment = datetime.fromisoformat(newest["created_at"])
        nairobi = moment.astimezone(UTC).isoformat().replace("+00:00", "Z")

        for written in (nairobi, nairobi.lower()):
            assert ids(page(scripted_caller, created_from=written)) == [newest["id"]]
        later = (moment + timedelta(microseconds=1)).isoformat()
        assert ids(page(scripted_caller, created_from=later)) == []

    def test_a_filtered_walk_stays_filtered(self, scripted_caller: HttpCaller) -> None:
        first = page(scripted_caller, payer=PAYER, limit=1)
        second = page(scripted_caller, payer=PAYER, limit=1, cursor=first["next_cursor"])

        assert [payment["payer"] for payment in first["data"] + second["data"]] == [PAYER] * 2
        assert second["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("state=PENDING", "state"),
        ("Status=PENDING", "Status"),
        ("status=pending", "status"),
        ("status=DONE", "status"),
        ("status=", "status"),
        ("status=PENDING&status=FAILED", "status"),
        ("limit=1&limit=1", "limit"),
        ("payer=abc", "payer"),
        ("payer=0772123456", "payer"),
        ("external_id=", "external_id"),
        ("external_id=%00", "external_id"),
        ("external_id=%ff", "external_id"),
        ("external_id=%ed%a0%80", "external_id"),
        ("external_id=" + "x" * 129, "external_id"),
        ("amount=10", "currency"),
        ("amount=10.5&currency=UGX", "amount"),
        ("amount=1e3&currency=EUR", "amount"),
        ("amount=-1&currency=EUR", "amount"),
        ("currency=eur", "currency"),
        ("created_from=2026-01-31", "created_from"),
        ("created_from=2026-01-31T00:00:00", "created_from"),
        ("created_from=2026-01-31T00:00:00+03:00", "created_from"),
        ("created_from=2026-02-30T00:00:00Z", "created_from"),
        ("created_to=1769817600", "created_to"),
        ("created_to=now", "created_to"),
    ],
)
def test_a_filter_that_is_misspelt_or_malformed_lists_nothing(
    caller: HttpCaller, query: str, field: str
) -> None:
    caller.pay()

    assert fields_of(caller.get(f"{PAYMENTS}?{query}")) == [field]


def test_an_unescaped_plus_sign_before_a_number_does_no_harm(caller: HttpCaller) -> None:
    payment = caller.pay()

    assert caller.listed(f"payer=+{PAYER}") == [payment["id"]]


def test_who_may_not_see_numbers_may_not_ask_for_one(caller: HttpCaller) -> None:
    """Else a number could be found by trying. Lists show its last digits only."""
    payment = caller.pay()
    with caller.app.app_context():
        wanted = NewKey(mode=Mode.TEST, scopes=frozenset({Scope.PAYMENTS_READ}))
        reader = HttpCaller(caller.app, caller.tenant, issue_key(caller.tenant, wanted, actor="t"))

    refused = reader.get(f"{PAYMENTS}?payer={PAYER}")

    assert (refused.status_code, code_of(refused)) == (403, "scope_missing")
    assert refused.get_json()["scope"] == "payers:read"
    assert reader.listed() == [payment["id"]]
    assert caller.listed(f"payer={PAYER}") == [payment["id"]]


class TestOthers:
    """Another tenant's payments, and the other mode's."""

    @pytest.fixture
    def caller(self, scripted_caller: HttpCaller) -> HttpCaller:
        """Its provider has an account for each mode."""
        return scripted_caller

    @pytest.fixture(params=["tenant", "mode"])
    def other(self, request: pytest.FixtureRequest, caller: HttpCaller) -> HttpCaller:
        if request.param == "tenant":
            return new_caller(caller.app)
        return caller.another_key(Mode.LIVE)

    def learned(self, answer: TestResponse) -> dict[str, Any]:
        return {**answer.get_json(), "request_id": None, "status code": answer.status_code}

    def test_look_like_none(self, caller: HttpCaller, other: HttpCaller) -> None:
        theirs = other.pay(external_id="order-1")["id"]
        nobodys = uuid4()

        for path in ("{}", "{}/events"):
            found = caller.get(f"{PAYMENTS}/{path.format(theirs)}")
            missing = caller.get(f"{PAYMENTS}/{path.format(nobodys)}")
            assert found.status_code == 404
            assert self.learned(found) == self.learned(missing)

    def test_are_in_no_list_and_behind_no_cursor(
        self, caller: HttpCaller, other: HttpCaller
    ) -> None:
        own = caller.pay()["id"]
        for _ in range(3):
            other.pay(external_id=f"order-{uuid4()}")
        cursor = page(other, limit=1)["next_cursor"]

        assert caller.listed() == [own]
        assert caller.listed(f"payer={PAYER}") == [own]
        assert caller.listed(f"cursor={cursor}") == [own]

    def test_do_not_take_an_external_id(self, caller: HttpCaller, other: HttpCaller) -> None:
        other.pay(external_id="order-1")

        assert caller.pay(external_id="order-1")["external_id"] == "order-1"


class TestEvents:
    """A payment's events."""

    def test_is_told_from_its_beginning_without_a_gap(
        self, scripted_caller: HttpCaller, engine: Engine
    ) -> None:
        payment = scripted_caller.pay()
        engine.finish(payment)

        told = scripted_caller.get(f"{PAYMENTS}/{payment['id']}/events").get_json()

        story = told["data"]
        assert [event["sequence"] for event in story] == list(range(1, len(story) + 1))
        assert (story[0]["type"], story[0]["status"]) == ("payment.accepted", "PENDING")
        assert (story[-1]["type"], story[-1]["status"]) == ("payment.successful", "SUCCESSFUL")
        assert story[-1]["stage"] == "final"
        assert told["next_cursor"] is None
        assert PAYER not in str(told)

    def test_is_walked_in_its_order(self, scripted_caller: HttpCaller, engine: Engine) -> None:
        payment = scripted_caller.pay()
        engine.finish(payment)
        whole = scripted_caller.get(f"{PAYMENTS}/{payment['id']}/events").get_json()["data"]
        walked: list[dict[str, Any]] = []
        cursor = ""

        while cursor is not None:
            query = f"?limit=1{f'&cursor={cursor}' if cursor else ''}"
            told = scripted_caller.get(f"{PAYMENTS}/{payment['id']}/events{query}").get_json()
            walked += told["data"]
            cursor = told["next_cursor"]

        assert walked == whole

    @pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "99999999999999999999", "٣", "1_0"])
    def test_has_cursors_of_its_own(self, caller: HttpCaller, cursor: str) -> None:
        payment = caller.pay()

        refused = caller.get(f"{PAYMENTS}/{payment['id']}/events?cursor={quote(cursor)}")

        assert refused.status_code == 400
        assert code_of(refused) == "cursor_invalid"

    def test_takes_no_filters(self, caller: HttpCaller) -> None:
        payment = caller.pay()

        assert fields_of(caller.get(f"{PAYMENTS}/{payment['id']}/events?type=x")) == ["type"]


def test_a_failure_says_who_must_act(
    scripted_caller: HttpCaller, engine: Engine, provider: ScriptedProvider
) -> None:
    provider.checks = [ANSWERS["declined"]]
    payment = scripted_caller.pay()
    engine.finish(payment)

    shown = scripted_caller.show(payment)

    assert (shown["status"], shown["stage"]) == ("FAILED", "final")
    assert shown["failure"] == {
        "code": "payer_rejected",
        "provider_code": "APPROVAL_REJECTED",
        "message": "The payer said no to the payment.",
        "who_must_act": "payer",
        "new_payment_may_help": True,
    }
    assert shown["final_at"] is not None
