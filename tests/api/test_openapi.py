"""openapi.json: equal to the file in the repository, complete, and as strict as the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from openapi_spec_validator import validate

from payments_app.api.problem_types import all_problems
from tests.api.documented import operations, resolved, validator
from tests.api.http_caller import HttpCaller, an_order

ROOT = Path(__file__).parents[2]
# Not for callers of the API: the documentation itself, metrics, and what only providers call.
UNDOCUMENTED = {
    "/openapi.json",
    "/metrics",
    "/docs",
    "/docs/start.js",
    "/docs/assets/{name}",
    "/callbacks/{provider}/{reference}",
}


@pytest.fixture(scope="module")
def spec(app: Flask) -> dict[str, Any]:
    document: dict[str, Any] = app.test_client().get("/openapi.json").get_json()
    return document


def test_the_repository_holds_what_is_served(app: Flask) -> None:
    kept = (ROOT / "openapi.json").read_text()

    served = app.test_client().get("/openapi.json").text

    assert json.loads(kept) == json.loads(served), "openapi.json is old: make openapi"


def test_the_command_writes_the_file_of_the_repository(app: Flask, tmp_path: Path) -> None:
    written = tmp_path / "openapi.json"

    result = app.test_cli_runner().invoke(args=["openapi", "write", str(written)])

    assert result.exit_code == 0, result.output
    assert written.read_text() == (ROOT / "openapi.json").read_text(), "make openapi"


def test_every_route_is_documented_or_named_here(app: Flask, spec: dict[str, Any]) -> None:
    routes = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()}

    assert routes == set(spec["paths"]) | UNDOCUMENTED


def test_every_operation_says_what_it_does_and_how_it_is_called(spec: dict[str, Any]) -> None:
    names = set()
    for name, operation in operations(spec):
        assert operation["summary"], name
        assert not operation["summary"].endswith("."), name
        assert operation["description"], name
        names.add(operation["operationId"])
        for part in operation.get("parameters", []):
            parameter = resolved(spec, part)
            assert parameter["description"], (name, parameter["name"])
            assert parameter["schema"], (name, parameter["name"])
    assert len(names) == len(list(operations(spec)))


def test_every_field_is_described(spec: dict[str, Any]) -> None:
    for name, schema in spec["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            known = described.get("description") or described.get("enum")
            assert known or described.get("items"), f"{name}.{field}"


def test_no_object_of_ours_has_room_for_more(spec: dict[str, Any]) -> None:
    for name, schema in spec["components"]["schemas"].items():
        narrows = "allOf" in schema and "properties" not in schema
        assert narrows or schema["additionalProperties"] is False, name


def test_every_error_is_a_problem_with_the_headers_it_has(spec: dict[str, Any]) -> None:
    for name, operation in operations(spec):
        for status, part in operation["responses"].items():
            answer = resolved(spec, part)
            assert answer["description"], (name, status)
            assert "X-Request-Id" in answer["headers"], (name, status)
            if status.startswith(("4", "5")) and not name.startswith("GET /health"):
                assert list(answer["content"]) == ["application/problem+json"], (name, status)
                assert "Link" in answer["headers"], (name, status)
    answers = spec["components"]["responses"]
    assert "Retry-After" in answers["TOO_MANY_REQUESTS"]["headers"]
    assert "Retry-After" in answers["SERVICE_UNAVAILABLE"]["headers"]
    assert "WWW-Authenticate" in answers["UNAUTHORIZED"]["headers"]


def test_every_problem_that_an_operation_can_have_is_listed_with_an_example(
    spec: dict[str, Any],
) -> None:
    answers = spec["components"]["responses"].values()
    listed = {
        code: example["value"]
        for answer in answers
        for code, example in answer["content"]["application/problem+json"]["examples"].items()
    }

    # These belong to no operation.
    without_operation = {"method_not_allowed", "not_acceptable"}
    assert set(listed) == {problem.code for problem in all_problems()} - without_operation
    for code, example in listed.items():
        assert (example["code"], example["type"]) == (code, f"/problems/{code}")


def test_what_needs_a_key_says_so_and_what_does_not_does_too(spec: dict[str, Any]) -> None:
    assert spec["security"] == [{"ApiKey": []}, {"Bearer": []}]
    for name, operation in operations(spec):
        is_open = operation.get("security") == []
        assert is_open is not name.split()[1].startswith("/api/"), name
        assert is_open is ("401" not in operation["responses"]), name


def test_it_names_no_other_host(spec: dict[str, Any]) -> None:
    # The document must not name anyone's machine.
    assert "://" not in json.dumps(spec).replace("http://localhost:3000/", "")


def test_a_stock_validator_takes_it(spec: dict[str, Any]) -> None:
    assert spec["openapi"] == "3.1.0"
    validate(spec)


def test_each_example_is_one(spec: dict[str, Any]) -> None:
    for name, schema in spec["components"]["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            if "example" in described:
                faults = validator(spec, described).iter_errors(described["example"])
                assert not list(faults), f"{name}.{field}"
    for answer in spec["components"]["responses"].values():
        (content,) = answer["content"].values()
        for code, example in content["examples"].items():
            assert validator(spec, content["schema"]).is_valid(example["value"]), code


def test_what_can_be_null_says_so_in_words_of_json_schema(spec: dict[str, Any]) -> None:
    assert "nullable" not in json.dumps(spec)
    payment = spec["components"]["schemas"]["Payment"]["properties"]
    assert payment["external_id"]["type"] == ["string", "null"]
    assert {"type": "null"} in payment["failure"]["anyOf"]
    # A parameter can't be sent as null.
    for name, operation in operations(spec):
        for parameter in (resolved(spec, part) for part in operation["parameters"]):
            assert "null" not in parameter["schema"].get("type", ""), (name, parameter["name"])


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"amount": 1}, True),
        ({"amount": "0.05"}, True),
        ({"amount": "12.50"}, True),
        ({"amount": 9_999_999_999_999}, True),
        ({"amount": 0}, False),
        ({"amount": "0.00"}, False),
        ({"amount": -1}, False),
        ({"amount": 10.5}, False),
        ({"amount": "007"}, False),
        ({"amount": "1.001"}, False),
        ({"amount": 10_000_000_000_000}, False),
        ({"currency": "EUR"}, True),
        ({"currency": "eur"}, False),
        ({"payer": "+256 772-123456"}, True),
        ({"payer": "256"}, False),
        ({"payer": 256772123456}, False),
        ({"description": "x" * 500}, True),
        ({"description": "x" * 501}, False),
        ({"description": ""}, False),
        ({"description": "a\nb"}, False),
        ({"external_id": None}, True),
        ({"description": None}, True),
        ({"provider": None}, True),
        ({"metadata": None}, True),
        ({"provider": "mtn_momo"}, True),
        ({"provider": "MTN"}, False),
        ({"metadata": {"a": 1}}, True),
        ({"metadata": []}, False),
        ({"colour": "red"}, False),
    ],
)
def test_the_code_and_the_document_take_the_same(
    spec: dict[str, Any], caller: HttpCaller, changes: dict[str, Any], *, fits: bool
) -> None:
    body = an_order(**changes)

    schema = {"$ref": "#/components/schemas/NewPayment"}
    assert validator(spec, schema).is_valid(body) is fits
    assert (caller.post(body).status_code == 201) is fits
