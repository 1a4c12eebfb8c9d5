"""Sentences about wrong fields are our own: a library's would change with the library."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import marshmallow as ma
import pytest
from flask import Flask

from payments_app.api.request_schema import RequestSchema
from tests.api.http_caller import PAYMENTS, HttpCaller, an_order
from tests.api.test_request_schema import SCHEMAS

WRONG: list[Any] = [
    *(None, True, 7, -1, 2.5, 10**400, "", " ", "nonsense", "x" * 3000, "a\nb", "é", "\x00"),
    *([], ["nonsense"], [7], [None], ["payment.*"] * 21, {}, {"a": "\x00"}, {"a": {"b": 2**60}}),
]
# Our sentences begin so, and are short: the field's name is shown before them.
OURS = re.compile(r"(must|is|isn't|holds|can't|has|needs|[A-Z]{3} takes|'|Say what)\b|'")


def library_phrases() -> list[re.Pattern[str]]:
    """All of marshmallow's sentences, as patterns: their placeholders match anything."""
    fields = [one for one in vars(ma.fields).values() if isinstance(one, type)]
    texts = {
        text
        for field in fields
        for text in getattr(field, "default_error_messages", {}).values()
        if isinstance(text, str)
    }
    texts |= {
        text
        for validator in vars(ma.validate).values()
        if isinstance(validator, type)
        for name, text in vars(validator).items()
        if isinstance(text, str) and name.startswith(("message", "default_message"))
    }
    texts |= {"Unknown field.", "Invalid input type.", "Invalid value."}
    return [re.compile(re.sub(r"\\\{\w+\\\}", ".*", re.escape(text))) for text in sorted(texts)]


PHRASES = library_phrases()


def is_ours(sentence: str) -> bool:
    return not any(phrase.search(sentence) for phrase in PHRASES)


def sentences_of(schema: RequestSchema, sent: dict[str, Any]) -> Iterator[str]:
    try:
        schema.load(sent)
    except ma.ValidationError as error:
        yield from leaves(error.messages)


def leaves(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        for inside in found.values():
            yield from leaves(inside)
    elif isinstance(found, list):
        for inside in found:
            yield from leaves(inside)
    else:
        yield str(found)


def test_the_phrases_of_the_library_are_known() -> None:
    for phrase in (
        "Not a valid integer.",
        "Missing data for required field.",
        "Unknown field.",
        "Length must be between 1 and 160.",
        "Must be one of: EUR, UGX.",
        "Must be greater than or equal to 0 and less than or equal to 72.",
    ):
        assert not is_ours(phrase)


def test_each_schema_of_a_route_is_looked_at(app: Flask) -> None:
    assert app.url_map
    assert {type(one) for one in SCHEMAS} == set(RequestSchema.__subclasses__())


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: type(schema).__name__)
def test_no_field_says_a_phrase_of_the_library(schema: RequestSchema) -> None:
    wrong = [str(one) for one in WRONG] if "Query" in type(schema).__name__ else WRONG
    told = [
        (name, value, sentence)
        for name in [*schema.load_fields, "unknown"]
        for value in wrong
        for sentence in sentences_of(schema, {name: value})
    ]
    told += [("", {}, sentence) for sentence in sentences_of(schema, {})]

    # The schema accepts any text as a cursor; the list checks it later.
    assert {name for name, _, _ in told} | {"cursor"} >= {*schema.load_fields, "unknown"}
    assert [one for one in told if not is_ours(one[2])] == []
    assert [one for one in told if not OURS.match(one[2])] == []


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("payer_message", "x" * 161, "must have 1 to 160 characters"),
        ("description", 7, "must be a string"),
        ("external_id", "", "must have 1 to 128 characters"),
        ("currency", None, "must not be null: send a value"),
        ("metadata", [], "must be a JSON object"),
    ],
)
def test_the_sentence_says_what_to_do(
    caller: HttpCaller, field: str, value: object, sentence: str
) -> None:
    refused = caller.post(an_order(**{field: value}))

    assert refused.status_code == 422
    told = refused.get_json()["errors"]
    assert {"in": "body", "field": field, "pointer": f"/{field}", "detail": sentence} in told


def test_so_do_those_of_webhooks_and_lists(caller: HttpCaller) -> None:
    body = {"url": "https://example.com/", "event_types": ["payment.*", 7, "nonsense"]}
    bent = caller.send("POST", "/api/v1/webhook-endpoints", json=body).get_json()["errors"]
    listed = caller.get(f"{PAYMENTS}?status=paid").get_json()["errors"]

    assert [one["pointer"] for one in bent] == ["/event_types/1", "/event_types/2"]
    assert bent[0]["detail"] == "must be a string"
    assert bent[1]["detail"].startswith("must be one of *, payment.*")
    assert [one["detail"] for one in listed] == ["must be one of PENDING, SUCCESSFUL, FAILED"]
