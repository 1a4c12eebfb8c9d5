"""What every JSON parser accepts is read; anything else is a 400 with its reason, and no 500."""

from __future__ import annotations

import gzip
import json

import pytest

from tests.api.http_caller import HttpCaller, an_order, code_of, count_payments, fields_of

GOOD = json.dumps(an_order()).encode()


def with_member(text: bytes) -> bytes:
    """A valid order with one more member, as written."""
    return GOOD[:-1] + b", " + text + b"}"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param(b"", "zero-length", id="empty"),
        pytest.param(b" ", "not JSON", id="blank"),
        pytest.param(b"[]", "not an object", id="array"),
        pytest.param(b"[" + GOOD + b"]", "not an object", id="array with an order"),
        pytest.param(b"null", "not an object", id="null"),
        pytest.param(b'"x"', "not an object", id="string"),
        pytest.param(b"1", "not an object", id="number"),
        pytest.param(GOOD + b" x", "not JSON", id="something behind it"),
        pytest.param(GOOD + GOOD, "not JSON", id="two documents"),
        pytest.param(GOOD[:-1], "not JSON", id="cut off"),
        pytest.param(GOOD[:-1] + b",}", "not JSON", id="comma at the end"),
        pytest.param(GOOD.replace(b'"', b"'"), "not JSON", id="single quotes"),
        pytest.param(GOOD.replace(b"1000", b"NaN"), "not JSON", id="NaN"),
        pytest.param(GOOD.replace(b"1000", b"Infinity"), "not JSON", id="Infinity"),
        pytest.param(with_member(b'"metadata": {"a": NaN}'), "not JSON", id="NaN inside"),
        pytest.param(with_member(b'"metadata": {"a": 1e400}'), "infinity", id="infinite number"),
        pytest.param(GOOD.replace(b"1000", b"01000"), "not JSON", id="leading zero"),
        pytest.param(GOOD.replace(b"1000", b"+1000"), "not JSON", id="plus sign"),
        pytest.param(GOOD.replace(b"1000", b"0x10"), "not JSON", id="hexadecimal"),
        pytest.param(with_member(b'"description": "\\ud800"'), "surrogate", id="half a pair"),
        pytest.param(
            with_member(b'"metadata": {"\\udc00": 1}'), "surrogate", id="half a pair in a name"
        ),
        pytest.param(with_member(b'"description": "\xe9"'), "UTF-8", id="Latin-1"),
        pytest.param(with_member(b'"description": "\xed\xa0\x80"'), "UTF-8", id="CESU-8"),
        pytest.param(with_member(b'"description": "\xc0\x80"'), "UTF-8", id="overlong"),
        pytest.param(with_member(b'"description": "a\nb"'), "control", id="bare line break"),
        pytest.param(b"\xef\xbb\xbf" + GOOD, "BOM", id="byte order mark"),
        pytest.param(GOOD.decode().encode("utf-16"), "not JSON", id="UTF-16"),
        pytest.param(GOOD + b"\x00", "not JSON", id="NUL behind it"),
        pytest.param(b"// order\n" + GOOD, "not JSON", id="comment"),
        pytest.param(with_member(b'"amount": 2'), '"amount"', id="a name twice"),
        pytest.param(with_member(b'"am\\u006funt": 2'), '"amount"', id="a name twice, escaped"),
        pytest.param(
            with_member(b'"metadata": {"a": [{"b": 1, "b": 1}]}'), '"b"', id="a name twice inside"
        ),
        pytest.param(b"[" * 20_000 + b"]" * 20_000, "depth", id="deep arrays"),
        pytest.param(b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "depth", id="deep objects"),
        pytest.param(b'{"a":' * 1_020 + b"1" + b"}" * 1_020, "too deeply", id="less deep"),
    ],
)
def test_what_is_not_the_same_json_for_everybody_is_refused(
    caller: HttpCaller, body: bytes, why: str
) -> None:
    refused = caller.post(body)

    assert refused.status_code == 400, refused.text
    assert code_of(refused) == "body_malformed"
    assert why in refused.get_json()["detail"]
    assert count_payments(caller) == 0


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/vnd.api+json",
        "application/json; charset=utf-16",
        "application/json; charset=iso-8859-1",
        "application/jsonx",
        "*/*",
    ],
)
def test_what_is_not_declared_as_json_in_utf_8_is_refused(
    caller: HttpCaller, content_type: str | None
) -> None:
    refused = caller.post(GOOD, content_type=content_type)

    assert refused.status_code == 415
    assert code_of(refused) == "unsupported_media_type"
    assert count_payments(caller) == 0


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate, gzip", "GZIP", "unknown"])
def test_a_coded_body_is_refused(caller: HttpCaller, coding: str) -> None:
    refused = caller.post(gzip.compress(GOOD), headers={"Content-Encoding": coding})

    assert refused.status_code == 415
    assert code_of(refused) == "unsupported_media_type"
    assert "Content-Encoding" in refused.get_json()["detail"]
    assert count_payments(caller) == 0


@pytest.mark.parametrize("coding", ["identity", "Identity", ""])
def test_a_body_that_is_said_to_be_plain_is_taken(caller: HttpCaller, coding: str) -> None:
    assert caller.post(GOOD, headers={"Content-Encoding": coding}).status_code == 201


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json; version=1",
    ],
)
def test_json_in_utf_8_is_taken_however_it_is_declared(
    caller: HttpCaller, content_type: str
) -> None:
    assert caller.post(GOOD, content_type=content_type).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b" \n\t" + GOOD + b"\r\n", id="white space around"),
        pytest.param(GOOD.replace(b"amount", b"\\u0061mount"), id="escaped name"),
        pytest.param(with_member(b'"description": "\\ud83d\\ude00"'), id="escaped pair"),
        pytest.param(with_member('"description": "😀 ﷽"'.encode()), id="any script"),
        pytest.param(with_member(b'"metadata": {"n": [0.1, -1e-7, 123456.789, 0]}'), id="numbers"),
    ],
)
def test_whatever_else_is_json_is_taken(caller: HttpCaller, body: bytes) -> None:
    accepted = caller.post(body)

    assert accepted.status_code == 201, accepted.text
    assert caller.show(accepted.get_json())["amount"] == "1000.00"


def test_a_body_of_64_kib_is_read_and_one_byte_more_is_not(caller: HttpCaller) -> None:
    fill = 64 * 1024 - len(GOOD)
    largest, larger = GOOD + b" " * fill, GOOD + b" " * (fill + 1)

    assert caller.post(largest).status_code == 201
    assert caller.post(larger).status_code == 413


def test_thousands_of_unknown_fields_do_not_make_a_long_answer(caller: HttpCaller) -> None:
    refused = caller.post({f"field-{number}" + "x" * 300: 1 for number in range(150)})

    assert len(fields_of(refused)) == 20
    assert len(refused.get_data()) < 8_000
