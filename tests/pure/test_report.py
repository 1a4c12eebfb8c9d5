"""The commands' output: aligned; empty lists say so; ids and instants as the API writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from payments_app.commands.report import Report, fields, table

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def test_columns_are_as_wide_as_their_widest_cell_and_nothing_trails() -> None:
    text = table(("A", "LONG"), [("wide cell", None), ("x", True)], empty="none")
    assert text == "A          LONG\nwide cell  -\nx          yes"


def test_an_empty_table_is_a_sentence() -> None:
    assert table(("A",), [], empty="There are none.") == "There are none."


def test_fields_are_aligned_and_instants_in_utc() -> None:
    assert fields({"at": NOON, "longer": False}) == "at      2026-11-23 12:00:00Z\nlonger  no"


def test_json_has_ids_and_instants_as_the_api_writes_them() -> None:
    report = Report({"id": UUID(int=1), "at": NOON, "name": "Märkte"}, "")
    assert report.as_json() == (
        '{\n  "id": "00000000-0000-0000-0000-000000000001",'
        '\n  "at": "2026-11-23T12:00:00Z",\n  "name": "Märkte"\n}'
    )


def test_what_has_no_form_in_json_is_a_bug() -> None:
    with pytest.raises(TypeError):
        Report({"body": b"bytes"}, "").as_json()
