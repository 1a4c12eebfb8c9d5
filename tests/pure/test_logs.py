"""Log lines never contain a whole phone number or a credential; ids stay."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from io import StringIO
from uuid import UUID

import pytest
import structlog

from payments_app.kernel.logs import configure_logs, masked

KEY = "mara_test_aBcDeFgHiJ_" + "k" * 38


@pytest.mark.parametrize(
    "written",
    [
        "256772123456",
        "+256772123456",
        "00256772123456",
        "%2B256772123456",
        "0772123456",
        "2250701020304",
        "256 772 123456",
        "+256 772 123 456",
        "256-772-123-456",
        "0772 123 456",
        "payer=256772123456",
        "'payer': '256772123456'",
        '{"payer":"256772123456"}',
        "/payments?payer=%2B256772123456&limit=1",
        "(256772123456)",
        "256772123456.",
        "a 256772123456 b 256772123456",
        "order_256772123456",
    ],
)
def test_a_number_is_cut_to_its_last_digits(written: str) -> None:
    text = masked(written)

    digits = "".join(character for character in text if character.isdigit())
    assert "772123" not in digits
    assert "070102" not in digits
    assert "***456" in text or "***304" in text


@pytest.mark.parametrize(
    "text",
    [
        "01a209c4-fa5d-763e-9bf3-f438751b7084",
        "12345678-1234-4123-8123-123456789012",
        "ab12345678901234",
        "2026-11-23T18:57:13.919681Z",
        "2026-11-23 18:57:13",
        "at 18:57:13.919681",
        "took 0.123456789 s",
        "port 65535",
        "127.0.0.1:54321",
        "1000 rows",
        "line 1 column 20000",
        "version 5.7.0",
        "/problems/validation_failed",
    ],
)
def test_what_is_no_number_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (KEY, "k" * 38),
        (f"X-API-Key: {KEY}", "k" * 38),
        (KEY.upper(), "K" * 38),
        ("Authorization: Bearer eyJhbGciOi.J9.x-y_z", "eyJ"),
        ("{'Authorization': 'Basic dTpw'}", "dTpw"),
        ("bearer abc", "abc"),
        ("could not connect to postgresql://app:hunter2@db/maramoja", "hunter2"),
        ("redis://:hunter2@redis:6379/0", "hunter2"),
    ],
)
def test_a_credential_is_left_out(text: str, secret: str) -> None:
    assert secret not in masked(text)
    assert "…" in masked(text)


def test_of_a_key_its_public_beginning_stays() -> None:
    assert masked(KEY) == "mara_test_aBcD…"


@pytest.fixture
def lines() -> Iterator[StringIO]:
    """The log lines in the product's own format, captured instead of written to stderr."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logs(level="DEBUG", log_format="json")
    written = StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(root.handlers[0].formatter)
    root.handlers[:] = [handler]
    yield written
    root.handlers[:] = before
    root.setLevel(level)


def test_a_line_is_json_with_its_event_and_ids(lines: StringIO) -> None:
    payment_id = "01a209c4-fa5d-763e-9bf3-f438751b7084"
    structlog.get_logger("payments").info("payment.accepted", payment_id=payment_id, status=201)

    line = json.loads(lines.getvalue())
    assert (line["event"], line["level"], line["logger"]) == (
        "payment.accepted",
        "info",
        "payments",
    )
    assert (line["payment_id"], line["status"]) == (payment_id, 201)
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("value", ["\ud800", {"a": {1: "b"}}, 2**70, float("nan"), {"\udfff": 1}])
def test_a_line_is_written_whatever_it_holds(lines: StringIO, value: object) -> None:
    structlog.get_logger().info("odd", value=value)
    assert json.loads(lines.getvalue())["event"] == "odd"


def test_a_line_is_one_line_for_every_reader(lines: StringIO) -> None:
    structlog.get_logger().info("odd", value="é\u2028\u0085\x0b")
    written = lines.getvalue()
    assert written.isascii()
    assert len(written.splitlines()) == 1
    assert json.loads(written)["value"] == "é\u2028\u0085\x0b"


def test_what_is_below_the_level_is_not_written(lines: StringIO) -> None:
    configure_logs(level="WARNING", log_format="json")
    log = structlog.get_logger("quiet")
    logging.getLogger().handlers[0].stream = lines  # type: ignore[attr-defined]
    log.info("told")
    log.warning("warned")
    assert [json.loads(line)["event"] for line in lines.getvalue().splitlines()] == ["warned"]


def test_however_deep_a_number_or_key_is_in_a_line_it_is_masked(lines: StringIO) -> None:
    class Payer:
        def __repr__(self) -> str:
            return "Payer(256772123456)"

    structlog.get_logger().info(
        "x",
        number=256772123456,
        nested={"a": [{"b": ("256772123456", KEY)}], "256772123456": 1},
        raw=b"256772123456",
        thing=Payer(),
    )

    assert "772123456" not in lines.getvalue()
    assert "k" * 38 not in lines.getvalue()


def test_small_numbers_ids_and_flags_are_kept(lines: StringIO) -> None:
    own_id = UUID("01a209c4-fa5d-763e-9bf3-f438751b7084")
    structlog.get_logger().info("x", count=7, share=0.5, here=True, nothing=None, own_id=own_id)

    line = json.loads(lines.getvalue())
    assert [line[name] for name in ("count", "share", "here", "nothing")] == [7, 0.5, True, None]
    assert str(own_id) in line["own_id"]


def test_a_traceback_is_masked_too(lines: StringIO) -> None:
    try:
        raise ValueError(f"no such payer: 256772123456 (asked with {KEY})")
    except ValueError:
        structlog.get_logger().exception("request.failed")

    assert "ValueError" in lines.getvalue()
    assert "772123456" not in lines.getvalue()
    assert "k" * 38 not in lines.getvalue()


def test_what_libraries_say_is_masked_and_has_the_same_form(lines: StringIO) -> None:
    logging.getLogger("library").warning("sent to %s with %s", "256772123456", KEY)
    logging.getLogger("library").warning("more", extra={"payer": "256772123456"})

    assert "772123456" not in lines.getvalue()
    for text in lines.getvalue().splitlines():
        assert json.loads(text)["logger"] == "library"


def test_a_line_break_in_a_value_does_not_make_a_line(lines: StringIO) -> None:
    structlog.get_logger().info("x", text="a\nINFO forged\r\n")

    assert len(lines.getvalue().splitlines()) == 1


def test_the_console_form_is_masked_too(lines: StringIO) -> None:
    configure_logs(level="INFO", log_format="console")
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(lines)

    structlog.get_logger().info("x", payer="256772123456")

    assert "***456" in lines.getvalue()
    assert "772123456" not in lines.getvalue()
