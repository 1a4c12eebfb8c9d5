"""openapi.json as the tests read it: operations, references, and a stock validator of its schemas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

METHODS = {"get", "post", "put", "patch", "delete"}


def operations(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each operation with its method and path, such as `GET /health`."""
    for path, item in spec["paths"].items():
        for method in METHODS & set(item):
            yield f"{method.upper()} {path}", item[method]


def resolved(spec: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found: Any = spec
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    document: dict[str, Any] = found
    return document


def validator(spec: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    """A validator of OpenAPI 3.1 schemas, which are JSON Schema 2020-12. It checks formats too."""
    whole = {**schema, "components": spec["components"]}
    return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)
