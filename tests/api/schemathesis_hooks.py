"""Corrects cases that schemathesis means to be accepted, where openapi.json can't say enough.

Schemas can't express a numbering plan, an account's terms, cursors (only a list gives them out),
a tenant's name, or that one of several fields must have a value. The rest of each case stays as
it was generated, and cases that are meant to be refused stay as they are.
"""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Any
from uuid import uuid4

import schemathesis
from schemathesis import Case, GenerationMode, HookContext

from payments_app.api.v1.fields import METADATA_DEPTH_MAX, METADATA_NUMBER_MAX

TENANT = os.environ["FUZZ_TENANT"]
# The ids that exist, by their name in paths.
THERE = {
    name: os.environ[f"FUZZ_{name.upper()}"]
    for name in ("payment_id", "endpoint_id", "delivery_id")
}
PUBLIC_URL = os.environ["FUZZ_URL"]
BEYOND = re.compile("[\U00010000-\U0010ffff]")
CURSOR = os.environ["FUZZ_CURSOR"]
PAYER = "256772123456"
# A currency with decimals that the sandbox takes: any amount of the schema fits it.
CURRENCY = "EUR"
# Ids that do not exist must be tried too, so every second case gets one that exists.
EVERY = 2
_counter = iter(range(10**9))


@schemathesis.hook
def before_call(_context: HookContext, case: Case, _options: dict[str, Any]) -> None:
    # Else nearly every case would be refused for its tenant, whatever else is in it.
    if case.headers and "X-Tenant-Id" in case.headers:
        case.headers["X-Tenant-Id"] = TENANT
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if case.headers and "Idempotency-Key" in case.headers:
        # A key of its own: a key that another case has used would rightly be refused.
        quote = '"' if case.headers["Idempotency-Key"].startswith('"') else ""
        case.headers["Idempotency-Key"] = f"{quote}{uuid4()}{quote}"
    for name in (case.path_parameters or {}).keys() & THERE.keys():
        if next(_counter) % EVERY:
            case.path_parameters[name] = THERE[name]
    _make_query_possible(case)
    _make_body_possible(case)


def _make_body_possible(case: Case) -> None:
    if not isinstance(case.body, dict):
        return
    for name in ("amount", "overlap_hours"):
        # JSON Schema takes 43.0 for an integer, and can't demand one without a point.
        if isinstance(case.body.get(name), float):
            case.body[name] = int(case.body[name])
    if case.path.endswith("{endpoint_id}/resend"):
        said = any(case.body.get(name) for name in ("since", "until", "failed_only"))
        case.body["failed_only"] = case.body.get("failed_only", False) if said else True
    if case.path == "/api/v1/payments":
        _make_order_possible(case.body)
    elif "url" in case.body:
        case.body["url"] = PUBLIC_URL


def _make_query_possible(case: Case) -> None:
    query = case.query or {}
    if "cursor" in query:
        # Nothing is published in this test: the feed is empty.
        known = {"events": "0", "deliveries": THERE["delivery_id"]}
        query["cursor"] = known.get(case.path.rpartition("/")[2], CURSOR)
    if "payer" in query:
        query["payer"] = PAYER
    if "amount" in query:
        query["currency"] = CURRENCY


def _make_order_possible(body: dict[str, Any]) -> None:
    body["currency"] = CURRENCY
    body["payer"] = PAYER
    if body.get("external_id") is not None:
        # Unique, about as long as it was, with the generated text in it. No pattern can express
        # NFC, and none that all tools accept names the invisible characters beyond U+FFFF.
        # The whole is normalized: the UUID's last letter and the text's first mark may be one.
        made_up = BEYOND.sub("x", body["external_id"])
        whole = unicodedata.normalize("NFC", f"{uuid4()}{made_up}")
        body["external_id"] = whole[: max(len(made_up), 36)].rstrip(" ")
    if body.get("provider") is not None:
        body["provider"] = "mtn_momo"
    for name in ("payer_message", "payee_note"):
        if body.get(name) is not None:
            body[name] = "x" * len(body[name])
    if body.get("metadata") is not None:
        body["metadata"] = _storable(body["metadata"], METADATA_DEPTH_MAX)


def _storable(value: Any, levels: int) -> Any:
    match value:
        case str():
            return value.replace("\0", "")[:20]
        case int() | float():
            return max(-METADATA_NUMBER_MAX, min(value, METADATA_NUMBER_MAX))
        case dict() if levels:
            few = list(value.items())[:5]
            return {_storable(name, 0): _storable(inner, levels - 1) for name, inner in few}
        case list() if levels:
            return [_storable(inner, levels - 1) for inner in value[:5]]
    return None
