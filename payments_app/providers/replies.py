"""Reads a provider's JSON in every form that RFC 8259 allows; anything else reads as empty. Pure.

An answer with two possible meanings is not read: a repeated member makes the whole empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final, NoReturn

from payments_app.kernel.http.messages import HttpResponse
from payments_app.kernel.money import EXPONENTS, Money

# A provider's own text; none that we know is longer than 60. `Failure` allows less.
WORD_LENGTH_MAX: Final = 100
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
# Far beyond any amount and any time: 1E999999999 is a number too, and must not be computed with.
NUMBER_DIGITS_MAX: Final = 20


def json_fields(answer: HttpResponse) -> Mapping[str, object]:
    """The members of the answer's JSON object; empty for anything that isn't wholly one.

    Numbers are returned as their original text: none is rounded, and none is too long to read. A
    member given twice could be read either way (RFC 8259, 4), so the whole is refused, and so are
    NaN and Infinity, which JSON doesn't have. A byte order mark is ignored (8.1). It must be UTF-8.
    """
    if answer.truncated:
        return {}
    try:
        found = json.loads(
            answer.body.decode("utf-8-sig"),
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
    # No control characters, no lone surrogates: a database or a terminal may fail on them.
    return "".join(filter(str.isprintable, value))[:WORD_LENGTH_MAX].strip()


def number(value: object) -> Decimal | None:
    """The exact value of a JSON number, or of text that is one; None for anything else.

    It takes what `json_fields` gives for a number: its original text.
    """
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        return None
    try:
        found = Decimal(value)
    except ArithmeticError:
        return None
    if not found:
        return Decimal(0)
    return found if abs(found.adjusted()) < NUMBER_DIGITS_MAX else None


def money(amount: object, currency: object) -> Money | None:
    """What the provider says it moved, exactly, or None if that can't be read.

    10000000, "10000000.00" and 1.0E7 are one amount. One finer than the currency's smallest unit is
    None.
    """
    value = number(amount)
    if value is None or not isinstance(currency, str) or currency not in EXPONENTS:
        return None
    numerator, denominator = value.as_integer_ratio()
    minor, rest = divmod(numerator * 10 ** EXPONENTS[currency], denominator)
    try:
        return None if rest else Money(minor, currency)
    except ValueError:
        return None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a member is given twice")
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
