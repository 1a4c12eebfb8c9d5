"""docs/payments.md has the fields of openapi.json: names, types, which may be left out or null."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import pytest

from tests.docs.pages import ROOT, read

PAGE: Final = "docs/payments.md"
SCHEMAS: Final = json.loads((ROOT / "openapi.json").read_text())["components"]["schemas"]
OF_SECTION: Final = {
    "The request": "NewPayment",
    "The payment": "Payment",
    "The failure": "Failure",
}
BY_SECTION: Final = pytest.mark.parametrize("section", OF_SECTION)


def section_of(title: str) -> str:
    return read(PAGE).split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(section: str) -> dict[str, list[str]]:
    """Field → the other cells of its row: type, required or may be null, meaning."""
    lines = re.findall(r"^\| `(\w+)` \|(.+)\|$", section_of(section), re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}


def types_of(schema: dict[str, Any]) -> list[str]:
    """The JSON types of a field's values."""
    if "$ref" in schema:
        return ["object"]
    if several := schema.get("oneOf") or schema.get("anyOf"):
        return [kind for one in several for kind in types_of(one)]
    named = schema["type"]
    return named if isinstance(named, list) else [named]


def fields_of(section: str) -> dict[str, dict[str, Any]]:
    fields: dict[str, dict[str, Any]] = SCHEMAS[OF_SECTION[section]]["properties"]
    return fields


@BY_SECTION
def test_each_field_has_a_row_with_its_type(section: str) -> None:
    wanted = {
        name: " or ".join(kind for kind in types_of(field) if kind != "null")
        for name, field in fields_of(section).items()
    }
    assert {name: cells[0] for name, cells in rows(section).items()} == wanted
    assert list(rows(section)) == list(wanted), "in another order"


def test_the_page_tells_what_a_request_must_have() -> None:
    required = {name for name, cells in rows("The request").items() if cells[1] == "yes"}
    assert required == set(SCHEMAS["NewPayment"]["required"])
    nullable = {n for n, field in fields_of("The request").items() if "null" in types_of(field)}
    assert nullable == set(rows("The request")) - required
    assert SCHEMAS["NewPayment"]["additionalProperties"] is False


@pytest.mark.parametrize("section", ["The payment", "The failure"])
def test_the_page_tells_what_may_be_null_in_an_answer(section: str) -> None:
    fields = fields_of(section)
    assert set(SCHEMAS[OF_SECTION[section]]["required"]) == set(fields), "one may be absent"
    nullable = {name for name, field in fields.items() if "null" in types_of(field)}
    assert {name for name, cells in rows(section).items() if cells[1] == "yes"} == nullable


@BY_SECTION
def test_the_page_tells_each_length_and_each_value(section: str) -> None:
    for name, field in fields_of(section).items():
        meaning = rows(section)[name][2]
        assert meaning.endswith("."), name
        if "maxLength" in field:
            assert f" {field['maxLength']} characters" in meaning, name
        where = section_of("The request") if name == "currency" else meaning
        for value in field.get("enum", ()):
            assert f"`{value}`" in where, f"{name}: {value}"
