"""The attacks: each sends something of the victim's, and the same with something that no one has.

The two responses must be alike in everything. If they differ, an intruder can find another
tenant's id, key or number by trying.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

from werkzeug.test import TestResponse

from payments_app.tenants.key_format import CHECKSUM_LENGTH, checksum
from tests.api.http_caller import HttpCaller, an_order
from tests.isolation.rules import IMPLIED, ROUTES, Rule
from tests.isolation.scene import INTRUDERS, Scene, likeness

_PARAMETER = re.compile(r"<uuid:(\w+)>")
NOBODYS_PAYER = "256772111222"


@dataclass(frozen=True)
class Pair:
    """The responses about the victim's thing and about no one's, and the values in each request."""

    theirs: TestResponse
    nobodys: TestResponse
    said: tuple[str, ...] = ()
    said_of_nobody: tuple[str, ...] = ()

    def difference(self, scene: Scene) -> str | None:
        """What an intruder would learn, or None."""
        theirs = likeness(self.theirs, self.said)
        nobodys = likeness(self.nobodys, self.said_of_nobody)
        if theirs != nobodys:
            return f"{theirs}\nis not\n{nobodys}"
        whole = f"{self.theirs.headers}{self.theirs.get_data(as_text=True)}"
        told = [one for one in scene.secrets if one in whole and one not in self.said]
        return f"it tells {told}" if told else None


Attack = Callable[[Scene, HttpCaller, str, str], Pair]


def by_id(spell: Callable[[str], str], query: str = "", **headers: str) -> Attack:
    """The victim's id in the path, in this spelling, against a random id."""

    def attack(scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
        ids = scene.ids[_parameter(route)], str(uuid4())
        given = {k: v.format(scene.victim.tenant) for k, v in headers.items()}
        body = {"json": {}} if method in ("POST", "PATCH") else {}
        answers = [
            intruder.send(method, f"{_path(route, spell(one))}{query}", headers=given, **body)
            for one in ids
        ]
        return Pair(*answers, (ids[0], scene.victim.tenant.slug), (ids[1],))

    return attack


def by_reference(scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
    """The provider's reference in place of the payment's id."""
    reference = scene.payment["reference"]
    theirs = intruder.send(method, _path(route, reference))
    return Pair(theirs, intruder.send(method, _path(route, str(uuid4()))), (reference,))


def as_tenant(scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
    """X-Tenant-Id of a tenant that exists, against one that doesn't."""
    slugs = scene.victim.tenant.slug, f"t-{uuid4().hex[:12]}"
    if intruder.tenant.id == scene.victim.tenant.id:
        slugs = f"t-{uuid4().hex[:12]}", slugs[1]
    path = _path(route, str(uuid4()))
    answers = [intruder.send(method, path, headers={"X-Tenant-Id": slug}) for slug in slugs]
    return Pair(*answers)


def with_half_a_key(scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
    """The public half of the victim's key with a wrong secret, against an unknown key."""
    path = _path(route, scene.ids[_parameter(route)])
    known, unknown = scene.victim.key.key, intruder.key.key
    forged = [_forged(known), _forged(unknown[:10] + "zzzzzzzzzz" + unknown[20:])]
    answers = [intruder.send(method, path, headers={"X-API-Key": key}) for key in forged]
    said = tuple(scene.ids.values())
    return Pair(*answers, said, said)


def filtered(**query: str) -> Attack:
    """The victim's values in a filter, against values that no payment has."""

    def attack(scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
        nobodys = {
            "payer": NOBODYS_PAYER,
            "external_id": f"nobody-{uuid4().hex}",
            "amount": "4322.00",
            "created_from": "2124-01-01T00:00:00Z",
        }
        asked = [
            {**query, **{k: str(of[k]) for k in nobodys if query.get(k) == "?"}}
            for of in ({**scene.payment, "created_from": "2124-01-01T00:00:00Z"}, nobodys)
        ]
        answers = [intruder.send(method, f"{route}?{urlencode(one)}") for one in asked]
        return Pair(*answers, tuple(asked[0].values()), tuple(asked[1].values()))

    return attack


def with_cursor(scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
    """A cursor from the victim's list, against one of the same time and a random id."""
    text = base64.urlsafe_b64decode(scene.cursor + "=" * (-len(scene.cursor) % 4)).decode()
    made = f"{text.partition('|')[0]}|{uuid4()}".encode()
    forged = base64.urlsafe_b64encode(made).decode().rstrip("=")
    answers = [intruder.send(method, f"{route}?cursor={one}") for one in (scene.cursor, forged)]
    return Pair(*answers)


def created(*, key: bool = False, body: str = "own") -> Attack:
    """The victim's key, order or external_id in the intruder's own request, against fresh ones."""

    def attack(scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
        orders: list[dict[str, Any]] = [an_order(amount=77), an_order(amount=77)]
        if body == "external_id":
            orders = [
                {**orders[0], "external_id": one}
                for one in (scene.payment["external_id"], f"victim-{uuid4().hex}")
            ]
        elif body == "the same":
            orders = [scene.order, {**scene.order, "external_id": f"victim-{uuid4().hex}"}]
        keys = scene.idempotency_key if key else str(uuid4()), str(uuid4())
        answers = [
            intruder.send(method, route, json=order, headers={"Idempotency-Key": one})
            for order, one in zip(orders, keys, strict=True)
        ]
        assert all("Idempotent-Replayed" not in answer.headers for answer in answers)
        said = [tuple(v for v in o.values() if isinstance(v, str)) for o in orders]
        return Pair(*answers, *said)

    return attack


def called_back(name: str, **headers: str) -> Attack:
    """A callback for a reference that exists, against one for a reference that doesn't."""

    def attack(scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
        own = {"X-API-Key": None if headers.get("key") != "own" else intruder.key.key}
        answers = [
            intruder.send(
                method,
                route.replace("<provider>", headers.get("provider", "mtn_momo")).replace(
                    "<reference>", reference
                ),
                data=b'{"status":"SUCCESSFUL"}',
                headers=own,
            )
            for reference in (scene.payment[name], str(uuid4()))
        ]
        return Pair(*answers)

    return attack


def in_public(scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
    """A public page for a tenant's key, against the same page without a key."""
    path = route.replace("<code>", "not_found").replace("<name>", "swagger-ui.css")
    theirs = scene.victim.send(method, path)
    nobodys = intruder.send(method, path, headers={"X-API-Key": None})
    for answer in (theirs, nobodys):
        answer.get_data()
        # A file that is sent stays open until it is closed.
        answer.close()
    return Pair(theirs, nobodys)


def from_outside(_scene: Scene, intruder: HttpCaller, method: str, route: str) -> Pair:
    """Through a proxy that isn't trusted, against a path that doesn't exist."""
    headers = {"X-Forwarded-For": "203.0.113.7"}
    there, nothing = (intruder.send(method, path, headers=headers) for path in (route, f"{route}s"))
    return Pair(there, nothing)


ATTACKS: dict[Rule, dict[str, Attack]] = {
    Rule.PUBLIC: {"with a key": in_public},
    Rule.OPERATORS: {"from outside": from_outside},
    Rule.BY_ID: {
        "the id": by_id(str),
        "the id in capitals": by_id(str.upper),
        "the id and a slash": by_id(lambda one: f"{one}/"),
        "the id and a cursor": by_id(str, "?cursor=1"),
        "the id and a limit": by_id(str, "?limit=1"),
        "the id and a filter": by_id(str, f"?payer={NOBODYS_PAYER}"),
        "the id as the tenant's id": by_id(str, **{"X-Tenant-Id": "{0.id}"}),
        "the id as the tenant's slug": by_id(str, **{"X-Tenant-Id": "{0.slug}"}),
        "the id with a key in the query": by_id(str, "?tenant_id=*"),
        "the provider's reference": by_reference,
        "a tenant's name": as_tenant,
        "half a key": with_half_a_key,
    },
    Rule.LIST: {
        "payer": filtered(payer="?"),
        "external_id": filtered(external_id="?"),
        "amount": filtered(amount="?", currency="EUR"),
        "payer and status": filtered(payer="?", status="PENDING"),
        "payer and external_id": filtered(payer="?", external_id="?"),
        "external_id and limit": filtered(external_id="?", limit="1"),
        "a later time": filtered(created_from="?"),
        "cursor": with_cursor,
        "a tenant's name": as_tenant,
        "half a key": with_half_a_key,
    },
    Rule.WHOLE_LIST: {
        "payer": filtered(payer="?"),
        "cursor": with_cursor,
        "a tenant's name": as_tenant,
        "half a key": with_half_a_key,
    },
    Rule.CREATE: {
        "the key with another order": created(key=True),
        "the key with the same order": created(key=True, body="the same"),
        "the key with the external_id": created(key=True, body="external_id"),
        "the external_id": created(body="external_id"),
        "the same order": created(body="the same"),
        "a tenant's name": as_tenant,
        "half a key": with_half_a_key,
    },
    Rule.CALLBACK: {
        "the reference": called_back("reference"),
        "the reference with a key": called_back("reference", key="own"),
        "the payment's id": called_back("id"),
        "another provider's": called_back("reference", provider="other"),
        "a provider that is none": called_back("reference", provider="%00"),
    },
}
# Other verbs on a tenant's address must not show what exists either.
OTHER_VERBS = ("PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")


@dataclass(frozen=True)
class Case:
    """One attack on one route by one intruder."""

    method: str
    route: str
    attack: str
    intruder: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.route}: {self.attack}, by {self.intruder}"

    def run(self, scene: Scene) -> str | None:
        """What the intruder learned, or None."""
        attack = ATTACKS[_rule(self.method, self.route)][self.attack]
        return attack(scene, scene.intruders[self.intruder], self.method, self.route).difference(
            scene
        )

    @property
    def makes_something(self) -> bool:
        """Whether the attack creates something for the intruder."""
        return _rule(self.method, self.route) is Rule.CREATE


def cases() -> list[Case]:
    """Every route and verb, with every attack of its rule, by every intruder."""
    verbs = set(ROUTES) | {
        (verb, route)
        for (method, route), rule in ROUTES.items()
        for verb in (OTHER_VERBS if rule is Rule.BY_ID else sorted(IMPLIED))
        if not (verb == "HEAD" and method != "GET") and (verb, route) not in ROUTES
    }
    return [
        Case(method, route, attack, intruder)
        for method, route in sorted(verbs)
        for attack in ATTACKS[_rule(method, route)]
        for intruder in (INTRUDERS if _rule(method, route) is not Rule.PUBLIC else INTRUDERS[:1])
    ]


def _rule(method: str, route: str) -> Rule:
    if (method, route) in ROUTES:
        return ROUTES[method, route]
    get = ROUTES.get(("GET", route))
    return get or next(rule for (_, one), rule in ROUTES.items() if one == route)


def _path(route: str, one: str) -> str:
    return _PARAMETER.sub(one, route)


def _parameter(route: str) -> str:
    """The parameter in the path; payment_id if there is none."""
    found = _PARAMETER.search(route)
    return found[1] if found else "payment_id"


def _forged(key: str) -> str:
    """The key with another secret and a valid checksum."""
    unsigned = key[:-CHECKSUM_LENGTH]
    other = unsigned[:-1] + ("A" if unsigned[-1] != "A" else "B")
    return other + checksum(other)
