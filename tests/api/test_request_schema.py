"""Our fast way to load a request gives the same results as marshmallow's own."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payments_app.api.request_schema import RequestSchema
from payments_app.api.v1.payments import requests as schemas
from payments_app.api.v1.webhooks import requests as webhook_schemas

SCHEMAS = [
    found()
    for module in (schemas, webhook_schemas)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, RequestSchema) and found is not RequestSchema
]
WORDS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2000),
    st.text(max_size=5),
    st.sampled_from(
        [
            *(
                "1000",
                "12.50",
                "0",
                "UGX",
                "EUR",
                "256772123456",
                "0772123456",
                "mtn_momo",
                "order-1",
            ),
            *("https://example.com/hook", "PENDING", "20", "2026-01-31T09:12:33Z", "payment.*"),
            *("\n", "x" * 600, True, 1.5),
        ]
    ),
    st.lists(st.sampled_from(["payment.*", "*", "nonsense"]), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def test_each_request_schema_is_looked_at() -> None:
    assert len(SCHEMAS) >= 9


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: type(schema).__name__)
def test_no_schema_has_hooks_that_the_quick_way_would_pass(schema: RequestSchema) -> None:
    hooks = {kind: found for kind, found in schema._hooks.items() if found}
    assert {name for found in hooks.values() for name, *_ in found} == {"make"}
    assert not any(field.data_key or field.dump_only for field in schema.fields.values())


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: type(schema).__name__)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_both_ways_come_to_the_same(schema: RequestSchema, data: st.DataObject) -> None:
    names = st.sampled_from([*schema.fields, "unknown"])
    # In a query string every value is text.
    values = WORDS.map(str) if "Query" in type(schema).__name__ else WORDS
    sent: dict[str, Any] = data.draw(st.dictionaries(names, values, max_size=6))
    if data.draw(st.booleans()) and "payer" in schema.fields:
        sent |= {"amount": "1000", "currency": "EUR", "payer": "256772123456"}

    assert quickly(schema, sent) == whole(schema, sent)


def quickly(schema: RequestSchema, sent: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "read", schema.load(dict(sent))
    except ma.ValidationError as error:
        return "refused", error.messages


def whole(schema: RequestSchema, sent: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "read", ma.Schema.load(schema, dict(sent))
    except ma.ValidationError as error:
        return "refused", error.messages
