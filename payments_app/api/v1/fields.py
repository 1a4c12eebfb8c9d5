"""Fields that read a value into its type, and say in one sentence what is wrong with it."""

from __future__ import annotations

import re
from typing import Any, Final

import marshmallow as ma
import orjson

from payments_app.kernel.msisdn import Msisdn

# U+0000 to U+001F, DEL and C1: no text for people needs them, and PostgreSQL refuses U+0000.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
AMOUNT_PATTERN: Final = r"^(0|[1-9][0-9]{0,15})(\.[0-9]{1,6})?$"
METADATA_BYTES_MAX: Final = 4096
METADATA_DEPTH_MAX: Final = 5
PAGE_DEFAULT: Final = 20
PAGE_MAX: Final = 100


class Amount(ma.fields.Field[int | str]):
    """Major units: a JSON integer or a decimal string, never a fractional JSON number."""

    def _deserialize(self, value: Any, *_args: Any, **_options: Any) -> int | str:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ma.ValidationError('must be an integer or a decimal string such as "12.50"')
        if not re.match(AMOUNT_PATTERN.replace("$", r"\Z"), str(value)):
            raise ma.ValidationError(
                'must be a positive whole number or a decimal string such as "12.50"'
            )
        return value


class MsisdnField(ma.fields.Field[Msisdn]):
    """A mobile number in international form."""

    def _deserialize(self, value: Any, *_args: Any, **_options: Any) -> Msisdn:
        if not isinstance(value, str):
            raise ma.ValidationError("must be a string of digits, such as 256772123456")
        try:
            return Msisdn.parse(value)
        except ValueError as error:
            raise ma.ValidationError(str(error)) from None


class CleanText(ma.fields.String):
    """Text of a line, without control characters, not empty."""

    def __init__(self, *, longest: int, **options: Any) -> None:
        """`longest`: characters."""
        super().__init__(validate=ma.validate.Length(min=1, max=longest), **options)

    def _deserialize(self, value: Any, *args: Any, **options: Any) -> str:
        text: str = super()._deserialize(value, *args, **options)
        if _CONTROL.search(text):
            raise ma.ValidationError("must not hold control characters")
        return text


class MetadataField(ma.fields.Dict):
    """The tenant's own JSON object: bounded, and storable as it is."""

    def _deserialize(self, value: Any, *args: Any, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = super()._deserialize(value, *args, **options)
        if _depth(found) > METADATA_DEPTH_MAX:
            raise ma.ValidationError(f"must not nest deeper than {METADATA_DEPTH_MAX}")
        text = orjson.dumps(found)
        if len(text) > METADATA_BYTES_MAX:
            raise ma.ValidationError(f"must be at most {METADATA_BYTES_MAX} bytes of JSON")
        if rb"\u0000" in text:
            raise ma.ValidationError("must not hold the character U+0000")
        return found


class Limit(ma.fields.Integer):
    """How many rows a page has."""

    def __init__(self) -> None:
        super().__init__(
            load_default=PAGE_DEFAULT, validate=ma.validate.Range(min=1, max=PAGE_MAX)
        )


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(inner) for inner in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(inner) for inner in value), default=0)
    return 0
