"""Every route, every verb: another tenant's things look like things that do not exist."""

from __future__ import annotations

import pytest
from flask import Flask

from tests.api.http_caller import NOBODYS, PAYMENTS, HttpCaller
from tests.isolation.attacks import ATTACKS, Case, Pair, cases
from tests.isolation.rules import IMPLIED, ROUTES, Rule
from tests.isolation.scene import INTRUDERS, Scene, set_up

CASES = cases()
# The current number: fewer mean that a route or an attack was lost.
CASES_MIN = 612


def test_each_route_and_verb_has_a_rule(app: Flask) -> None:
    there = {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - IMPLIED
    }

    assert there == set(ROUTES), "say in tests/isolation/rules.py whose it is"


def test_each_rule_has_its_attacks_and_none_has_gone() -> None:
    assert set(ATTACKS) == set(Rule)
    assert {case.route for case in CASES} == {route for _, route in ROUTES}
    assert len(CASES) >= CASES_MIN


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_another_tenants_things_look_like_nobodys(app: Flask, scene: Scene, case: Case) -> None:
    # What an intruder creates with the victim's key or external_id stays, so it gets a new victim.
    learned = case.run(set_up(app) if case.makes_something else scene)

    assert learned is None, learned


def test_the_victim_itself_sees_what_the_intruders_are_after(scene: Scene) -> None:
    shown = scene.victim.show(scene.payment)

    assert shown["payer"] == scene.payment["payer"]
    assert scene.victim.listed(f"external_id={shown['external_id']}") == [shown["id"]]
    assert scene.victim.listed(f"cursor={scene.cursor}") == [shown["id"]]
    assert scene.victim.post(scene.order, key=scene.idempotency_key).headers["Idempotent-Replayed"]


@pytest.mark.parametrize("intruder", INTRUDERS)
def test_a_difference_would_be_seen(scene: Scene, intruder: str) -> None:
    """The comparison fails when an intruder gets the victim's own responses."""
    nobodys = scene.intruders[intruder].get(f"{PAYMENTS}/{NOBODYS}")

    for theirs in (
        scene.victim.get(f"{PAYMENTS}/{scene.payment['id']}"),
        HttpCaller.get(scene.victim, f"{PAYMENTS}?payer={scene.payment['payer']}"),
    ):
        assert Pair(theirs, nobodys).difference(scene)
    assert Pair(theirs, theirs).difference(scene) is not None
