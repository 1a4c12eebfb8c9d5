"""Field types that parse a value, and explain in one sentence what is wrong with it.

openapi.json shows the same patterns and bounds: they are defined here once.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import Any, Final

import marshmallow as ma
import orjson

from payments_app.kernel.msisdn import Msisdn

# C0, DEL, C1, and line separators: no line of text has them. Then the characters that change the
# order of letters (UAX 9): a reader sees a different text than the stored one.
_NEVER: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
# All spaces but U+0020, the characters that fonts leave out (Default_Ignorable_Code_Point), and the
# others without ink. Only those that a \u with four digits can write.
_INVISIBLE: Final = (
    r"\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u202f"
    r"\u205f-\u206f\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
)
# Musical and shorthand controls, tags, and more variation selectors.
_INVISIBLE_BEYOND: Final = "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"

# In JSON Schema's syntax.
TEXT_PATTERN: Final = rf"^[^{_NEVER}]+$"
REFERENCE_PATTERN: Final = (
    rf"^[^ {_NEVER}{_INVISIBLE}]([^{_NEVER}{_INVISIBLE}]*[^ {_NEVER}{_INVISIBLE}])?$"
)

_NOT_IN_TEXT: Final = re.compile(f"[{_NEVER}]")
_NOT_IN_REFERENCE: Final = re.compile(f"[{_NEVER}{_INVISIBLE}{_INVISIBLE_BEYOND}]|^ | $")


def objection_to_text(value: str) -> str | None:
    """Names the character that one line of text may not hold; None if there is none."""
    found = _NOT_IN_TEXT.search(value)
    return found and f"must be one line without control characters, but holds {name_of(found[0])}"


def objection_to_reference(value: str) -> str | None:
    """Names the character that would let two references look the same; None if there is none."""
    if found := _NOT_IN_REFERENCE.search(value):
        where = "begins or ends with" if found[0] == " " else "holds"
        return f"must show as it is, but {where} {name_of(found[0])}"
    composed = unicodedata.normalize("NFC", value)
    if composed == value:
        return None
    # If one text is a prefix of the other, the difference is at the longer one's next character.
    at = next((at for at, one in enumerate(value) if composed[at : at + 1] != one), len(value) - 1)
    end = at + 2 if at + 1 < len(value) and unicodedata.combining(value[at + 1]) else at + 1
    names = " and ".join(name_of(one) for one in value[at:end])
    return f"must be in Unicode's composed form (NFC), but holds {names}"


def name_of(character: str) -> str:
    """Its code point and its name in Unicode, such as "U+00A0 (NO-BREAK SPACE)"."""
    name = unicodedata.name(character, "")
    return f"U+{ord(character):04X}" + (f" ({name})" if name else "")


# Major units below 10^13 fit into Money, whatever the currency's decimals. Zero doesn't match: an
# amount is never zero.
AMOUNT_PATTERN: Final = (
    r"^([1-9][0-9]{0,12}(\.[0-9]{1,2})?|0\.(0[1-9]|[1-9][0-9]?))$"  # 1, 1.5, 1.50; 0.05, 0.5, 0.50
)
AMOUNT_MAX: Final = 10**13 - 1
MSISDN_PATTERN: Final = r"^(\+|00)?[0-9]([ -]?[0-9]){7,16}$"
INSTANT_PATTERN: Final = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})$"
)
CURSOR_PATTERN: Final = r"^[A-Za-z0-9_-]+$"
CURSOR_LENGTH_MAX: Final = 200
METADATA_BYTES_MAX: Final = 4096
METADATA_DEPTH_MAX: Final = 5
# Beyond it, JSON readers disagree about the value (RFC 7493).
METADATA_NUMBER_MAX: Final = 2**53 - 1
PAGE_DEFAULT: Final = 20
PAGE_MAX: Final = 100


def whole(pattern: str) -> re.Pattern[str]:
    """A JSON Schema pattern, where $ is the very end, for Python, where it isn't."""
    return re.compile(pattern.removeprefix("^").removesuffix("$"))


class Amount(ma.fields.Field[int | str]):
    """Major units: a JSON integer or a decimal string, never a fractional JSON number."""

    _WANTED: Final = (
        "must be a whole number above zero, or a decimal string with at most two decimals"
        ' such as "12.50"'
    )
    _TOO_LARGE: Final = f"must be at most {AMOUNT_MAX}"
    _FORM: Final = whole(AMOUNT_PATTERN)
    _LONG: Final = whole(r"^[1-9][0-9]{13,}(\.[0-9]{1,2})?$")

    def _deserialize(self, value: Any, *_args: Any, **_options: Any) -> int | str:
        # orjson reads a whole number beyond 64 bits as a float.
        if isinstance(value, int | float) and value > AMOUNT_MAX:
            raise ma.ValidationError(self._TOO_LARGE)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ma.ValidationError(self._WANTED)
        if not self._FORM.fullmatch(text := str(value)):
            is_long = self._LONG.fullmatch(text) is not None
            raise ma.ValidationError(self._TOO_LARGE if is_long else self._WANTED)
        return value


class AmountText(Amount):
    """The same in a query, where every value is text."""


class MsisdnField(ma.fields.Field[Msisdn]):
    """A mobile number in international form."""

    _WANTED: Final = 'must be a string of digits in international form, such as "256772123456"'
    _FORM: Final = whole(MSISDN_PATTERN)

    def _deserialize(self, value: Any, *_args: Any, **_options: Any) -> Msisdn:
        # In a query, an unescaped + arrives as a space.
        if not isinstance(value, str) or not self._FORM.fullmatch(value.strip(" ")):
            unseen = objection_to_reference(value.strip(" ")) if isinstance(value, str) else None
            raise ma.ValidationError(unseen or self._WANTED)
        try:
            return Msisdn.parse(value)
        except ValueError as error:
            raise ma.ValidationError(str(error)) from None


class Text(ma.fields.String):
    """One line of text without control characters, not empty. Stored unchanged."""

    def __init__(self, *, longest: int, **options: Any) -> None:
        """`longest`: characters."""
        super().__init__(validate=[ma.validate.Length(min=1, max=longest), self._clean], **options)

    def _clean(self, value: str) -> None:
        if objection := self._objection(value):
            raise ma.ValidationError(objection)

    def _objection(self, value: str) -> str | None:
        return objection_to_text(value)


class Reference(Text):
    """A text that must be unique: without invisible characters, so that no other looks the same."""

    def _objection(self, value: str) -> str | None:
        return objection_to_reference(value)


class Flag(ma.fields.Field[bool]):
    """true or false, and no value that could be taken for one."""

    def _deserialize(self, value: Any, *_args: Any, **_options: Any) -> bool:
        if not isinstance(value, bool):
            raise ma.ValidationError("must be true or false")
        return value


class Instant(ma.fields.Field[datetime]):
    """An instant with its offset from UTC (RFC 3339)."""

    _WANTED: Final = (
        "must be a moment with its offset, such as 2026-01-31T12:00:00Z"
        " (in an address, + is written %2B)"
    )
    _FORM: Final = whole(INSTANT_PATTERN)

    def _deserialize(self, value: Any, *_args: Any, **_options: Any) -> datetime:
        if not isinstance(value, str) or not self._FORM.fullmatch(value):
            raise ma.ValidationError(self._WANTED)
        try:
            return datetime.fromisoformat(value.upper())
        except ValueError:
            raise ma.ValidationError(self._WANTED) from None


class Metadata(ma.fields.Dict):
    """The tenant's own JSON object: limited in size, and storable unchanged."""

    def _deserialize(self, value: Any, *args: Any, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = super()._deserialize(value, *args, **options)  # type: ignore[no-untyped-call]
        if objection := _objection(found):
            raise ma.ValidationError(objection)
        if len(orjson.dumps(found)) > METADATA_BYTES_MAX:
            raise ma.ValidationError(f"must be at most {METADATA_BYTES_MAX} bytes of JSON")
        return found


class Limit(ma.fields.Field[int]):
    """The number of rows on a page."""

    _FORM: Final = whole("^[0-9]{1,3}$")

    def __init__(self, **options: Any) -> None:
        """Set the default of all lists."""
        super().__init__(load_default=PAGE_DEFAULT, **options)

    def _deserialize(self, value: Any, *_args: Any, **_options: Any) -> int:
        # int() would also read digits of other alphabets, and 1_0.
        if not self._FORM.fullmatch(value) or not 1 <= int(value) <= PAGE_MAX:
            raise ma.ValidationError(f"must be a whole number from 1 to {PAGE_MAX}")
        return int(value)


class Cursor(ma.fields.String):
    """Where the next page begins. The list that uses it checks if it is one of ours."""

    def __init__(self, **options: Any) -> None:
        """Without a cursor, the list starts at its beginning."""
        super().__init__(load_default=None, allow_none=False, **options)


def _objection(document: dict[str, Any]) -> str | None:
    """What is wrong inside the document. It goes level by level, so depth needs no recursion."""
    level: list[Any] = [document]
    for _ in range(METADATA_DEPTH_MAX):
        inside = [value for container in level for value in _members(container)]
        if not all(_storable(value) for value in inside):
            return (
                "must hold no character U+0000, and no number beyond"
                f" ±{METADATA_NUMBER_MAX}: write those as strings"
            )
        level = [value for value in inside if isinstance(value, dict | list)]
        if not level:
            return None
    return f"must not nest deeper than {METADATA_DEPTH_MAX} levels"


def _members(container: dict[str, Any] | list[Any]) -> list[Any]:
    """All values in it, and an object's names."""
    return [*container, *container.values()] if isinstance(container, dict) else container


def _storable(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, int | float):
        return -METADATA_NUMBER_MAX <= value <= METADATA_NUMBER_MAX
    return True


_ATTRIBUTES: Final[dict[type[ma.fields.Field[Any]], dict[str, Any]]] = {
    Amount: {
        "oneOf": [
            {"type": "integer", "minimum": 1, "maximum": AMOUNT_MAX},
            {"type": "string", "pattern": AMOUNT_PATTERN},
        ]
    },
    AmountText: {"type": "string", "pattern": AMOUNT_PATTERN},
    MsisdnField: {"type": "string", "pattern": MSISDN_PATTERN},
    Text: {"type": "string", "pattern": TEXT_PATTERN},
    Reference: {"type": "string", "pattern": REFERENCE_PATTERN},
    Flag: {"type": "boolean"},
    Instant: {"type": "string", "format": "date-time"},
    Limit: {"type": "integer", "minimum": 1, "maximum": PAGE_MAX},
    Cursor: {"type": "string", "maxLength": CURSOR_LENGTH_MAX, "pattern": CURSOR_PATTERN},
}


def describe(
    _converter: object, field: ma.fields.Field[Any], *, ret: dict[str, Any]
) -> dict[str, Any]:
    """What openapi.json shows for such a field, in addition to what apispec finds (`ret`)."""
    if ret.get("default", "") is None:
        # An absent field is not shown as null.
        del ret["default"]
    said = dict(_ATTRIBUTES.get(type(field), {}))
    if field.allow_none and "type" in said:
        said["type"] = [said["type"], "null"]
    return said
