"""DNS lookups are limited in time and number; one owner's lookups take no slots from another's."""

from __future__ import annotations

import socket
import threading
from ipaddress import ip_address

import pytest

from devstack.supervisor import wait_until
from payments_app.kernel.http.lookup import LookupLate, LookupRefused, Lookups, Name
from tests.nobodys_addresses import NEIGHBOURS_4
from tests.providers.leaping import leaping
from tests.pure.hostile_urls import PUBLIC, Hanging, Names

ADDRESS = (ip_address(PUBLIC[0]),)


def name(owner: str = "acme", host: str = "hooks.example.com") -> Name:
    return Name(owner, host, 443)


def late(lookups: Lookups, hang: Hanging, *names: Name) -> None:
    for one in names:
        with pytest.raises(LookupLate):
            lookups.addresses(hang, one, 0.05)


def finds(lookups: Lookups, one: Name) -> bool:
    try:
        return lookups.addresses(Names(*PUBLIC), one, 5.0) == ADDRESS
    except LookupRefused:
        return False


def test_an_owner_with_too_many_lookups_is_refused_at_once_and_another_is_not() -> None:
    lookups = Lookups(at_once=9, per_owner=2)
    with Hanging() as hang:
        late(lookups, hang, name(host="a.example.com"), name(host="b.example.com"))
        with pytest.raises(LookupRefused):
            lookups.addresses(hang, name(host="c.example.com"), 5.0)
        assert lookups.addresses(Names(*PUBLIC), name("other"), 5.0) == ADDRESS
    # The lookups that hung have ended, and their slots are free again.
    wait_until(lambda: finds(lookups, name()), what="lookups are under way", limit_s=5)


def test_all_owners_together_have_so_many_at_once() -> None:
    lookups = Lookups(at_once=2, per_owner=2)
    with Hanging() as hang:
        late(lookups, hang, name("a"), name("b"))
        with pytest.raises(LookupRefused):
            lookups.addresses(Names(*PUBLIC), name("c"), 5.0)


def begun(lookups: Lookups, hang: Hanging, one: Name) -> bool:
    try:
        lookups.addresses(hang, one, 0.0)
    except LookupLate:
        return True
    except LookupRefused:
        return False
    raise AssertionError


def test_a_worker_looks_up_four_names_at_once_for_a_tenant_and_128_in_all() -> None:
    lookups = Lookups()
    with Hanging() as hang:
        begins = [
            begun(lookups, hang, name(f"tenant {tenant}", f"h{number}.example"))
            for tenant in range(33)
            for number in range(5)
        ]
    assert begins == [True, True, True, True, False] * 32 + [False] * 5


def test_whoever_asks_for_the_same_name_waits_for_the_same_lookup() -> None:
    lookups = Lookups(per_owner=1)
    with Hanging() as hang:
        late(lookups, hang, name(), name(), name())
        wait_until(lambda: bool(hang.asked), what="the lookup did not begin", limit_s=5)
        assert len(hang.asked) == 1
        with pytest.raises(LookupRefused):
            lookups.addresses(hang, name(), 5.0, join=False)


def test_several_threads_get_one_lookups_answer() -> None:
    go, names = threading.Event(), Names(*PUBLIC)
    found: list[object] = []

    def resolve(host: str, port: int, **options: object) -> list[tuple[object, ...]]:
        go.wait(5)
        return names(host, port, **options)

    lookups = Lookups()
    threads = [
        threading.Thread(target=lambda: found.append(lookups.addresses(resolve, name(), 5.0)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    assert found == [ADDRESS] * 8
    assert len(names.asked) == 1


def test_an_answer_is_used_again_for_a_while_by_its_owner_only() -> None:
    names, lookups = Names(*PUBLIC), Lookups(kept_s=30)
    with leaping() as clock:
        for _ in range(3):
            lookups.addresses(names, name(), 5.0)
        assert len(names.asked) == 1
        lookups.addresses(names, name("other"), 5.0)
        assert len(names.asked) == 2
        names.addresses = (NEIGHBOURS_4[0],)
        clock.leap(31)
        assert lookups.addresses(names, name(), 5.0) == (ip_address(NEIGHBOURS_4[0]),)


def test_an_unknown_name_is_looked_up_again() -> None:
    names, lookups = Names(), Lookups()
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            lookups.addresses(names, name(), 5.0)
    assert len(names.asked) == 2


def test_a_resolver_that_fails_gives_its_place_back() -> None:
    def broken(*_: object, **__: object) -> list[tuple[object, ...]]:
        raise UnicodeError("label too long")

    lookups = Lookups(per_owner=1)
    for _ in range(3):
        with pytest.raises(UnicodeError):
            lookups.addresses(broken, name(), 5.0)
