"""Reads a provider's JSON so strictly that whatever is odd reads as nothing at all. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final, NoReturn

from payments_app.kernel.money import Money
from payments_app.kernel.wire import Answer

# A provider's own words are kept for people to read; none that we know is longer than 60.
WORD_LENGTH_MAX: Final = 100
RETRY_AFTER_DIGITS_MAX: Final = 4


def json_fields(answer: Answer) -> Mapping[str, object]:
    """The members of the answer's JSON object; empty for anything that isn't wholly one.

    Numbers come as the text that stood there: none is rounded, and none is too long to read.
    A member given twice could be read either way (RFC 8259, 4), so the whole is refused, and so
    are NaN and Infinity, which JSON doesn't have.
    """
    if answer.truncated:
        return {}
    try:
        found = json.loads(
            answer.body.decode(),
            object_pairs_hook=_without_repeats,
            parse_int=str,
            parse_float=str,
            parse_constant=_refuse,
        )
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def word(value: object) -> str:
    """A provider's text as it may be stored and shown; "" for what isn't text."""
    if not isinstance(value, str):
        return ""
    # No control characters, no lone surrogates: a database or a terminal would choke on them.
    return "".join(filter(str.isprintable, value))[:WORD_LENGTH_MAX].strip()


def money(amount: object, currency: object) -> Money | None:
    """What the provider says it moved, or None where that can't be read."""
    if not isinstance(amount, str) or not isinstance(currency, str):
        return None
    try:
        return Money.parse(amount, currency)
    except ValueError:
        return None


def retry_after_s(answer: Answer) -> float | None:
    """Retry-After in seconds (RFC 9110, 10.2.3); a date there, or nonsense, reads as None."""
    value = answer.headers.get("retry-after", "")
    if value.isdecimal() and value.isascii() and len(value) <= RETRY_AFTER_DIGITS_MAX:
        return float(value)
    return None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a member is given twice")
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
