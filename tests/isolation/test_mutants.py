"""The API without its own filters: row-level security alone must keep the tenants apart.

And on a copy of the database without its policies: there the same API does leak.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import func, select

from payments_app.payments import queries
from payments_app.webhooks import deliveries, endpoints, feed
from tests.api.http_caller import PAYMENTS
from tests.isolation.attacks import cases
from tests.isolation.conftest import MakeApp
from tests.isolation.scene import INTRUDERS, Scene, set_up
from tests.simulation.rewriting import Edit, rewritten

# Filters by mode stay: row-level security knows tenants only.
NO_FILTERS = (
    Edit(queries, "_own", "Payment.tenant_id == caller.tenant_id, ", ""),
    Edit(
        queries,
        "find_payment",
        "Payment.tenant_id.is_not_distinct_from(caller.tenant_id),",
        "",
    ),
    Edit(queries, "find_events", "PaymentEvent.tenant_id == caller.tenant_id,", ""),
    Edit(endpoints, "_own", "WebhookEndpoint.tenant_id == owner.tenant_id,", ""),
    Edit(deliveries, "_own", "WebhookDelivery.tenant_id == owner.tenant_id, ", ""),
    Edit(feed, "read_events", "PaymentEvent.tenant_id == owner.tenant_id,", ""),
    Edit(
        feed,
        "_last_position",
        "_last_positions(session, [owner])[owner]",
        "session.scalar(select(func.max(PaymentEvent.position))) or 0",
        uses={"select": select, "func": func},
    ),
)
BY_OTHERS = [case for case in cases() if "/api/" in case.route and case.intruder in INTRUDERS[:2]]
READS = [case for case in BY_OTHERS if case.method == "GET"]
# Writes to something that exists, by its id.
WRITES = [case for case in BY_OTHERS if case.method != "GET" and "<" in case.route]


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Reads without their filters by tenant."""
    with rewritten(*NO_FILTERS):
        yield


@pytest.fixture(scope="module")
def walled_scene(walled: str, app_on: MakeApp) -> Scene:
    return set_up(app_on(walled))


@pytest.fixture(scope="module")
def open_scene(wall_less: str, app_on: MakeApp) -> Scene:
    return set_up(app_on(wall_less))


@pytest.mark.usefixtures("forgetful")
def test_without_the_filters_the_wall_holds_every_attack(walled_scene: Scene) -> None:
    tried = READS + WRITES
    learned = {case.name: told for case in tried if (told := case.run(walled_scene))}

    assert learned == {}
    assert len(READS) >= 60
    assert len(WRITES) >= 60


@pytest.mark.usefixtures("forgetful")
def test_without_the_filters_a_feed_has_ones_own_only(walled_scene: Scene) -> None:
    told = walled_scene.intruders[INTRUDERS[0]].get("/api/v1/events").get_json()["data"]

    assert {event["type"] for event in told} == {"payment.accepted"}
    assert walled_scene.payment["id"] not in {event["data"]["payment_id"] for event in told}


@pytest.mark.usefixtures("forgetful")
def test_without_the_filters_a_list_has_ones_own_only(walled_scene: Scene) -> None:
    listed = walled_scene.intruders[INTRUDERS[0]].listed("limit=100")

    assert len(listed) == 2
    assert walled_scene.payment["id"] not in listed


@pytest.mark.usefixtures("forgetful")
def test_without_filters_and_without_the_wall_it_leaks(open_scene: Scene) -> None:
    """Each kind of read does leak without both, so the tests above can fail.

    Except by the payer's number: its index has a key of its own for each tenant.
    """
    leaking = {(case.route, case.attack) for case in READS if case.run(open_scene)}

    assert {
        (PAYMENTS, "external_id"),
        (f"{PAYMENTS}/<uuid:payment_id>", "the id"),
        (f"{PAYMENTS}/<uuid:payment_id>/events", "the id"),
        ("/api/v1/webhook-endpoints", "payer"),
        ("/api/v1/webhook-endpoints/<uuid:endpoint_id>", "the id"),
        ("/api/v1/webhook-endpoints/<uuid:endpoint_id>/deliveries", "the id"),
        ("/api/v1/webhook-deliveries/<uuid:delivery_id>", "the id"),
    } <= leaking
    victims = open_scene.payment["id"]
    fed = open_scene.intruders[INTRUDERS[0]].get("/api/v1/events").get_json()["data"]
    assert victims in {event["data"]["payment_id"] for event in fed}
    assert victims in open_scene.intruders[INTRUDERS[0]].listed("limit=100")


def test_with_the_filters_and_without_the_wall_the_code_holds_alone(open_scene: Scene) -> None:
    """The filters protect the rows without row-level security, and it does without them."""
    learned = {case.name: told for case in READS if (told := case.run(open_scene))}

    assert learned == {}
