"""What each field of an order accepts, and that an error names the field and its place."""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payments_app.api.v1.fields import name_of, objection_to_reference
from tests.api.http_caller import HttpCaller, an_order, count_payments, fields_of
from tests.builders import PAYER

MOBILE_NUMBERS = {
    "UG": "256772123456",
    "GH": "233241234567",
    "RW": "250781234567",
    "CI": "2250701020304",
}


@pytest.mark.parametrize(
    ("amount", "currency", "shown"),
    [
        (1, "UGX", "1"),
        (1000, "UGX", "1000"),
        ("1000", "UGX", "1000"),
        ("1000.00", "UGX", "1000"),
        (10, "EUR", "10.00"),
        ("10.5", "EUR", "10.50"),
        ("10.50", "EUR", "10.50"),
        ("0.01", "EUR", "0.01"),
        ("0.1", "EUR", "0.10"),
        (9_999_999_999_999, "EUR", "9999999999999.00"),
        (9_999_999_999_999, "UGX", "9999999999999"),
    ],
)
def test_an_amount_is_an_integer_or_a_decimal_string(
    scripted_caller: HttpCaller, amount: int | str, currency: str, shown: str
) -> None:
    accepted = scripted_caller.pay(amount=amount, currency=currency)

    assert accepted["amount"] == shown
    assert scripted_caller.show(accepted)["amount"] == shown


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(b"10.5", id="fractional"),
        pytest.param(b"1000.0", id="a whole one with a fraction"),
        pytest.param(b"1e3", id="exponent"),
        pytest.param(b"1E+3", id="exponent with a sign"),
        pytest.param(b"0", id="zero"),
        pytest.param(b"-0", id="minus zero"),
        pytest.param(b"-5", id="negative"),
        pytest.param(b"true", id="true"),
        pytest.param(b"false", id="false"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[1]", id="list"),
        pytest.param(b'{"value": 1}', id="object"),
        pytest.param(b"10000000000000", id="too large"),
        pytest.param(b"9223372036854775807", id="the largest of 64 bits"),
        pytest.param(b"9" * 40, id="beyond 64 bits"),
        pytest.param(b"9" * 300, id="beyond everything"),
        pytest.param(b'"9999999999999999"', id="too large a string"),
        pytest.param(b'""', id="empty"),
        pytest.param(b'" 1"', id="a space before it"),
        pytest.param(b'"1 "', id="a space behind it"),
        pytest.param(b'"1\\n"', id="a line break behind it"),
        pytest.param(b'"1 000"', id="grouped by a space"),
        pytest.param(b'"1,000"', id="grouped by a comma"),
        pytest.param(b'"1_000"', id="grouped as Python does"),
        pytest.param(b'"10,50"', id="decimal comma"),
        pytest.param(b'"007"', id="leading zeros"),
        pytest.param(b'"00.5"', id="leading zeros before a fraction"),
        pytest.param(b'".5"', id="nothing before the point"),
        pytest.param(b'"5."', id="nothing behind the point"),
        pytest.param(b'"0.00"', id="zero with decimals"),
        pytest.param(b'"-1"', id="negative string"),
        pytest.param(b'"+1"', id="plus sign"),
        pytest.param(b'"1e3"', id="exponent in a string"),
        pytest.param(b'"0x10"', id="hexadecimal"),
        pytest.param(b'"1.001"', id="three decimals"),
        pytest.param(b'"1.000"', id="three decimals, all zero"),
        pytest.param('"١٢"'.encode(), id="Arabic digits"),
        pytest.param('"\N{FULLWIDTH DIGIT ONE}"'.encode(), id="full-width digits"),
        pytest.param('"1२"'.encode(), id="mixed digits"),
        pytest.param(b'"NaN"', id="NaN"),
        pytest.param(b'"Infinity"', id="Infinity"),
        pytest.param(b'"ten"', id="a word"),
    ],
)
def test_nothing_else_is_an_amount(caller: HttpCaller, written: bytes) -> None:
    body = b'{"amount": ' + written + b', "currency": "EUR", "payer": "256772123456"}'

    refused = caller.post(body)

    assert fields_of(refused) == ["amount"]
    assert refused.get_json()["errors"][0]["pointer"] == "/amount"
    assert count_payments(caller) == 0


@pytest.mark.parametrize("amount", [10**13, 10**40, "10000000000000", "10000000000000.50"])
def test_one_that_is_too_large_is_told_the_bound(caller: HttpCaller, amount: int | str) -> None:
    refused = caller.post(an_order(amount=amount)).get_json()

    assert [error["detail"] for error in refused["errors"]] == ["must be at most 9999999999999"]


def test_decimals_that_the_currency_has_not_are_refused(scripted_caller: HttpCaller) -> None:
    assert fields_of(scripted_caller.post(an_order(amount="10.5", currency="UGX"))) == ["amount"]
    assert fields_of(scripted_caller.post(an_order(amount="0.01", currency="XOF"))) == ["amount"]


@pytest.mark.parametrize("currency", ["UGX", "ZMW", "USD"])
def test_a_currency_that_the_account_never_takes_is_refused_before_it_is_accepted(
    caller: HttpCaller, currency: str
) -> None:
    refused = caller.post(an_order(currency=currency))

    assert fields_of(refused) == ["currency"]
    assert refused.get_json()["errors"][0]["detail"] == "sandbox takes EUR."
    assert count_payments(caller) == 0


@pytest.mark.parametrize("currency", ["eur", "EURO", "", "XXX", "BTC", 978, None, ["EUR"], "EUR\n"])
def test_only_known_currencies_are_taken(caller: HttpCaller, currency: object) -> None:
    assert fields_of(caller.post(an_order(currency=currency))) == ["currency"]


@pytest.mark.parametrize(
    "payer",
    [
        PAYER,
        f"+{PAYER}",
        f"00{PAYER}",
        "256 772 123456",
        "+256-772-123-456",
        *MOBILE_NUMBERS.values(),
    ],
)
def test_a_mobile_number_of_any_country_is_taken_and_shown_in_digits(
    caller: HttpCaller, payer: str
) -> None:
    digits = payer.removeprefix("00").strip("+").replace(" ", "").replace("-", "")

    assert caller.pay(payer=payer)["payer"] == digits


@pytest.mark.parametrize(
    "payer",
    [
        pytest.param("0782000111", id="national"),
        pytest.param("782000111", id="without its country"),
        pytest.param("256414123456", id="a fixed line"),
        pytest.param("2567820001", id="too short"),
        pytest.param("25678200011178", id="too long"),
        pytest.param("256" + "1" * 30, id="far too long"),
        pytest.param("+256+782000111", id="two plus signs"),
        pytest.param("256782OO0111", id="a letter"),
        pytest.param("256782000111;ext=1", id="an extension"),
        pytest.param("tel:256782000111", id="a scheme"),
        pytest.param("", id="empty"),
        pytest.param("+", id="a plus sign"),
        pytest.param("999999999999", id="no country"),
        pytest.param("٢٥٦٧٨٢٠٠٠١١١", id="other digits"),
        pytest.param("256782000111\x00", id="NUL"),
        pytest.param(256782000111, id="a number"),
        pytest.param(None, id="null"),
        pytest.param({"msisdn": "256782000111"}, id="an object"),
    ],
)
def test_what_is_no_mobile_number_is_refused_and_not_repeated(
    caller: HttpCaller, payer: object
) -> None:
    refused = caller.post(an_order(payer=payer))

    assert fields_of(refused) == ["payer"]
    assert "82000111" not in refused.text


@pytest.mark.parametrize(
    ("name", "longest"),
    [("external_id", 128), ("payer_message", 160), ("payee_note", 160), ("description", 500)],
)
def test_texts_are_one_line_of_a_bounded_length(
    caller: HttpCaller, name: str, longest: int
) -> None:
    accepted = caller.pay(**{name: "x" * longest})

    assert caller.show(accepted)[name] == "x" * longest
    for wrong in ("", "x" * (longest + 1), "a\x00b", "a\nb", "a\x7fb", "a\x85b", 5, ["a"], True):
        assert fields_of(caller.post(an_order(**{name: wrong}))) == [name], repr(wrong)


LOOKS_LIKE_ORDER_77 = {
    "a space behind it": ("order-77 ", "U+0020 (SPACE)"),
    "a space before it": (" order-77", "U+0020 (SPACE)"),
    "a no-break space": ("order-77\u00a0", "U+00A0 (NO-BREAK SPACE)"),
    "an ideographic space": ("order\u3000-77", "U+3000 (IDEOGRAPHIC SPACE)"),
    "a zero-width space": ("order-\u200b77", "U+200B (ZERO WIDTH SPACE)"),
    "a zero-width joiner": ("order\u200d-77", "U+200D (ZERO WIDTH JOINER)"),
    "a byte order mark": ("\ufefforder-77", "U+FEFF (ZERO WIDTH NO-BREAK SPACE)"),
    "a soft hyphen": ("or\u00adder-77", "U+00AD (SOFT HYPHEN)"),
    "a mark of direction": ("order-77\u200e", "U+200E (LEFT-TO-RIGHT MARK)"),
    "an override of direction": ("\u202eorder-77", "U+202E (RIGHT-TO-LEFT OVERRIDE)"),
    "a variation selector": ("order-77\ufe0e", "U+FE0E (VARIATION SELECTOR-15)"),
    "a filler": ("order-77\u3164", "U+3164 (HANGUL FILLER)"),
    "a blank": ("order-77\u2800", "U+2800 (BRAILLE PATTERN BLANK)"),
    "a tag": ("order-77\U000e0037", "U+E0037 (TAG DIGIT SEVEN)"),
    "a control": ("order-77\x7f", "U+007F"),
    "a tab": ("order-77\t", "U+0009"),
    "a decomposed letter": (
        "orde\u0301r-77",
        "U+0065 (LATIN SMALL LETTER E) and U+0301 (COMBINING ACUTE ACCENT)",
    ),
    "a sign that is a letter": ("order-\u212b", "U+212B (ANGSTROM SIGN)"),
}


@pytest.mark.parametrize("what", LOOKS_LIKE_ORDER_77)
def test_a_reference_that_looks_like_another_is_refused_by_the_character(
    caller: HttpCaller, what: str
) -> None:
    external_id, named = LOOKS_LIKE_ORDER_77[what]

    refused = caller.post(an_order(external_id=external_id))

    assert fields_of(refused) == ["external_id"]
    assert named in refused.get_json()["errors"][0]["detail"]
    assert count_payments(caller) == 0


@pytest.mark.parametrize(
    "external_id", ["order 77", "ordér-77", "Ωmega/7", "注文-77", "заказ-77", "a", "=77", "😀"]
)
def test_a_reference_that_shows_is_taken_as_it_is(caller: HttpCaller, external_id: str) -> None:
    accepted = caller.pay(external_id=external_id)

    assert caller.show(accepted)["external_id"] == external_id
    assert caller.listed(urlencode({"external_id": external_id})) == [accepted["id"]]


def test_every_character_without_ink_is_refused_in_a_reference() -> None:
    """By Unicode's own categories, in this Python's version of Unicode."""
    spaces = {"Cc", "Zl", "Zp", "Zs"}
    # Format characters (Cf) that are visible: signs of numbers and verses in Arabic, Syriac and
    # Kaithi; hieroglyphs.
    visible = re.compile(
        "[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd\U00013430-\U0001345f]"
    )
    missed = [
        name_of(one)
        for one in map(chr, range(0x110000))
        if unicodedata.category(one) in spaces | {"Cf"}
        and not visible.match(one)
        and objection_to_reference(f"a{one}b") is None
    ]

    assert missed == ["U+0020 (SPACE)"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=20))
def test_two_references_that_are_taken_differ_in_what_shows(text: str) -> None:
    if objection_to_reference(text) is None:
        assert text == text.strip(" ") == unicodedata.normalize("NFC", text)
        assert not [one for one in text if one.isspace() and one != " "]


@pytest.mark.parametrize("text", ["a ", " a", "a\u00a0b", "नमस्ते\u200c", "👩\u200d👧", "e\u0301"])
def test_a_description_is_kept_as_it_is(caller: HttpCaller, text: str) -> None:
    assert caller.show(caller.pay(description=text))["description"] == text


@pytest.mark.parametrize(
    ("character", "named"),
    [("\u202e", "U+202E (RIGHT-TO-LEFT OVERRIDE)"), ("\u2028", "U+2028 (LINE SEPARATOR)")],
)
def test_no_text_holds_what_another_text_shows_for(
    caller: HttpCaller, character: str, named: str
) -> None:
    for name in ("payer_message", "payee_note", "description"):
        refused = caller.post(an_order(**{name: f"a{character}b"}))

        assert fields_of(refused) == [name]
        assert named in refused.get_json()["errors"][0]["detail"]


@pytest.mark.parametrize("character", ["\u00a0", "\u200b", "\u202c", "\ufeff"])
def test_a_number_with_what_does_not_show_is_refused_by_it(
    caller: HttpCaller, character: str
) -> None:
    """As numbers are when they are copied from a chat or a spreadsheet."""
    refused = caller.post(an_order(payer=f"{character}{PAYER}"))

    assert fields_of(refused) == ["payer"]
    assert f"U+{ord(character):04X}" in refused.get_json()["errors"][0]["detail"]


def test_only_the_description_may_hold_any_script(caller: HttpCaller) -> None:
    text = "Ünï😀 ﷽ <b>&amp;'\"\\"

    assert caller.show(caller.pay(description=text))["description"] == text
    assert caller.show(caller.pay(external_id=text))["external_id"] == text
    assert fields_of(caller.post(an_order(payer_message=text))) == ["payer_message"]


def test_absent_and_null_are_the_same(caller: HttpCaller) -> None:
    optional = (
        "provider",
        "external_id",
        "payer_message",
        "payee_note",
        "description",
        "metadata",
    )

    accepted = caller.pay(**dict.fromkeys(optional))

    assert {name: accepted[name] for name in optional[1:]} == dict.fromkeys(optional[1:])


@pytest.mark.parametrize(
    "provider", ["MTN", "mtn momo", "", "1mtn", "mtn_momo\n", "a" * 41, 7, "../mtn_momo"]
)
def test_a_provider_is_a_code(caller: HttpCaller, provider: object) -> None:
    assert fields_of(caller.post(an_order(provider=provider))) == ["provider"]


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param({}, id="empty"),
        pytest.param({"a": None, "b": True, "c": [1, "2", {}], "": ""}, id="all kinds"),
        pytest.param({"a": {"b": {"c": {"d": [1]}}}}, id="five levels"),
        pytest.param({"n": 2**53 - 1, "m": -(2**53 - 1)}, id="the largest numbers"),
        pytest.param({"x": 0.1, "y": 1e-9, "z": 12345.678}, id="fractions"),
        pytest.param({"text": "\\u0000 is only written here"}, id="a backslash"),
        pytest.param({"text": "é😀\x01\n"}, id="any other character"),
        pytest.param({"fill": "x" * 4085}, id="4096 bytes"),
    ],
)
def test_metadata_comes_back_as_it_was(caller: HttpCaller, metadata: dict[str, Any]) -> None:
    accepted = caller.pay(metadata=metadata)

    assert accepted["metadata"] == metadata
    assert caller.show(accepted)["metadata"] == metadata
    assert caller.get().get_json()["data"][0]["metadata"] == metadata


@pytest.mark.parametrize(
    "metadata",
    [
        pytest.param([], id="a list"),
        pytest.param("x", id="a text"),
        pytest.param(1, id="a number"),
        pytest.param({"a": {"b": {"c": {"d": {"e": {}}}}}}, id="six levels"),
        pytest.param({"a": [[[[[]]]]]}, id="six levels of lists"),
        pytest.param({"fill": "x" * 4086}, id="4097 bytes"),
        pytest.param({"fill": "é" * 2043}, id="4097 bytes of UTF-8"),
        pytest.param({"a\x00": 1}, id="NUL in a name"),
        pytest.param({"a": ["\x00"]}, id="NUL in a text"),
        pytest.param({"n": 2**53}, id="a number beyond"),
        pytest.param({"n": -(2**53)}, id="a negative number beyond"),
        pytest.param({"n": [1e20]}, id="a large float"),
        pytest.param({"n": 1e300}, id="a huge float"),
        pytest.param({"n": 10**40}, id="a huge integer"),
    ],
)
def test_metadata_that_could_not_come_back_as_it_was_is_refused(
    caller: HttpCaller, metadata: object
) -> None:
    assert fields_of(caller.post(an_order(metadata=metadata))) == ["metadata"]
    assert caller.get().status_code == 200


def test_metadata_that_nests_as_deep_as_json_may_is_refused(caller: HttpCaller) -> None:
    deep = b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"
    body = b'{"amount": 1, "currency": "EUR", "payer": "256772123456", "metadata": ' + deep + b"}"

    assert fields_of(caller.post(body)) == ["metadata"]


def test_fields_that_are_not_known_or_missing_are_named_with_their_place(
    caller: HttpCaller,
) -> None:
    refused = caller.post({"amount": 1, "curency": "EUR", "a/b~c": 1})

    errors = {error["field"]: error for error in refused.get_json()["errors"]}
    assert set(errors) == {"currency", "payer", "curency", "a/b~c"}
    assert errors["a/b~c"]["pointer"] == "/a~1b~0c"
    assert {error["in"] for error in errors.values()} == {"body"}
    assert errors["curency"]["detail"].startswith(
        "is not known here: leave it out, or send one of "
    )
    assert "currency" in errors["curency"]["detail"]
    assert errors["payer"]["detail"] == "is missing: send it"


def test_what_only_the_gateway_says_cannot_be_sent(caller: HttpCaller) -> None:
    for name in ("id", "status", "tenant_id", "mode", "reference", "created_at", "callback_url"):
        assert fields_of(caller.post(an_order(**{name: "x"}))) == [name]
