"""Hostile URLs, each refused for its own reason; and good ones, which must be accepted."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from devstack.supervisor import wait_until
from payments_app.kernel.database import EVERY_TENANT, init_database, transaction
from payments_app.kernel.http.destination import destination
from payments_app.kernel.http.egress import AddressRefused, EgressRules, check_url
from payments_app.kernel.http.public_address import is_public
from tests.nobodys_addresses import NOBODYS_HOST
from tests.pure.hostile_urls import (
    ADDRESS,
    FORMS,
    GOOD,
    GOOD_ADDRESSES,
    HOST,
    NOT_PUBLIC,
    PUBLIC,
    Hanging,
    Names,
    written,
)

RULES = EgressRules()
PRIVATE = EgressRules(allow_private=True)


@pytest.fixture(autouse=True)
def app_context() -> Iterator[None]:
    with Flask(__name__).app_context():
        yield


@pytest.mark.parametrize(("url", "reason"), FORMS.values(), ids=FORMS)
def test_a_hostile_form_is_refused_before_any_lookup(url: str, reason: str) -> None:
    names = Names(*PUBLIC)
    with pytest.raises(AddressRefused, match=reason):
        check_url(url, RULES, resolve=names)
    assert names.asked == []


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused, match=f"{ADDRESS}|{HOST}"):
        check_url(written(address), RULES, resolve=Names(*PUBLIC))


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC)
def test_a_name_with_one_address_that_is_not_public_is_refused(address: str) -> None:
    for addresses in ((address,), (*PUBLIC, address), (address, *PUBLIC)):
        names = Names(*addresses)
        with pytest.raises(AddressRefused, match=ADDRESS) as refused:
            check_url("https://hooks.example.com/", RULES, resolve=names)
        assert address not in f"{refused.value.detail} {refused.value.extra}"
        assert names.asked == ["hooks.example.com"]


def test_a_zone_that_the_resolver_adds_does_not_help() -> None:
    with pytest.raises(AddressRefused, match=ADDRESS):
        check_url("https://hooks.example.com/", RULES, resolve=Names("fe80::1%lo"))


@pytest.mark.parametrize("url", GOOD.values(), ids=GOOD)
def test_a_good_url_is_taken(url: str) -> None:
    check_url(url, RULES, resolve=Names(*PUBLIC))


@pytest.mark.parametrize("address", GOOD_ADDRESSES)
def test_a_public_address_is_taken(address: str) -> None:
    check_url(written(address), RULES, resolve=Names())
    check_url("https://hooks.example.com/", RULES, resolve=Names(*PUBLIC, address))


def test_the_host_is_what_will_be_asked_for_and_shown() -> None:
    target = destination("HTTPS://Hooks.Example.com?a=/@127.0.0.1", RULES)
    assert (target.host, target.port, target.tls) == ("hooks.example.com", 443, True)
    assert (target.host_header, target.path) == ("hooks.example.com", "/?a=/@127.0.0.1")
    rules = EgressRules(ports=(443, 8443))
    target = destination(f"https://[{NOBODYS_HOST}]:8443/", rules)
    assert (target.host, target.host_header) == (NOBODYS_HOST, f"[{NOBODYS_HOST}]:8443")


def test_a_port_is_allowed_by_the_list() -> None:
    rules = EgressRules(ports=(443, 8443))
    check_url("https://hooks.example.com:8443/", rules, resolve=Names(*PUBLIC))
    with pytest.raises(AddressRefused, match="one of these: 443, 8443"):
        check_url("https://hooks.example.com:8444/", rules, resolve=Names(*PUBLIC))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8080/",
        "http://receiver:8080/hook",
        "http://localhost/",
        "https://[::1]:9/",
        "http://hooks.example.com",
    ],
)
def test_development_may_name_its_own_machine(url: str) -> None:
    check_url(url, PRIVATE, resolve=Names("10.0.0.1", "127.0.0.1"))


@pytest.mark.parametrize(
    "name",
    ["octal", "one number", "user", "percent in the host", "backslash before a user", "ftp",
     "full-width digits", "ipv6, zone", "header in the path", "port beyond all", "too long"],
)  # fmt: skip
def test_development_may_not_write_what_two_parsers_read_differently(name: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(FORMS[name][0], PRIVATE, resolve=Names("127.0.0.1"))


def test_a_name_that_leads_nowhere_has_words_of_its_own() -> None:
    for rules in (RULES, PRIVATE):
        with pytest.raises(AddressRefused, match=ADDRESS):
            check_url("https://nowhere.example.com/", rules, resolve=Names())


def test_a_name_without_an_address_is_unknown_too() -> None:
    def found_nothing(*_: object, **__: object) -> list[tuple[Any, ...]]:
        return []

    with pytest.raises(AddressRefused, match=ADDRESS):
        check_url("https://hooks.example.com/", RULES, resolve=found_nothing)


def test_a_lookup_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("payments_app.kernel.http.egress.CHECK_MAX_S", 0.2)
    with Hanging() as hang:
        with pytest.raises(AddressRefused, match="not found in time"):
            check_url("https://hooks.example.com/", RULES, resolve=hang)
        assert hang.is_asked_still


def test_while_a_lookup_of_the_owner_runs_further_names_are_taken_without_one() -> None:
    with Hanging() as hang:
        checking = threading.Thread(target=refused_late, args=(hang, "acme"))
        checking.start()
        wait_until(lambda: len(hang.asked) == 1, what="the lookup did not begin", limit_s=5)
        for host in ("hooks.example.com", "other.example.com"):
            check_url(f"https://{host}/", RULES, owner="acme", resolve=hang)
        assert hang.is_asked_still
        assert len(hang.asked) == 1
        with pytest.raises(AddressRefused, match=ADDRESS):
            check_url(
                "https://hooks.example.com/", RULES, owner="other", resolve=Names("127.0.0.1")
            )
    checking.join()


def refused_late(hang: Hanging, owner: str) -> None:
    with Flask(__name__).app_context(), pytest.raises(AddressRefused):
        check_url("https://hooks.example.com/", RULES, owner=owner, resolve=hang)


def test_nothing_is_looked_up_inside_a_transaction() -> None:
    app = Flask(__name__)
    init_database(app, "postgresql+psycopg://nobody@127.0.0.1:1/none")
    names = Names(*PUBLIC)
    with (
        app.app_context(),
        transaction(EVERY_TENANT),
        pytest.raises(RuntimeError, match="transaction"),
    ):
        check_url("https://hooks.example.com/", RULES, resolve=names)
    assert names.asked == []


@given(st.ip_addresses(v=4, network="0.0.0.0/0"))
def test_what_python_calls_private_is_never_public(address: ipaddress.IPv4Address) -> None:
    # The converse does not hold: our list of addresses that are not public is longer.
    assert address.is_global or not is_public(address)


@given(st.text(alphabet="https:/.@[]%:0127fx\\# \r\n。１a-?", max_size=40))  # noqa: RUF001
def test_whatever_is_written_is_refused_or_leads_to_what_it_says(rest: str) -> None:
    try:
        target = destination(f"https://{rest}", RULES)
    except AddressRefused:
        return
    authority = rest.partition("/")[0].partition("?")[0]
    assert authority.removesuffix(":443").strip("[]").lower() == target.host
    assert target.literal is None or is_public(target.literal)
    assert target.path.isascii()
    assert " " not in target.path


def test_the_corpus_is_large() -> None:
    assert len(FORMS) + len(NOT_PUBLIC) >= 150
