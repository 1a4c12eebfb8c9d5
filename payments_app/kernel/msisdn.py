"""An MSISDN is a valid mobile number in international digits. Its repr() is masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import phonenumbers

_MOBILE: Final = {
    phonenumbers.PhoneNumberType.MOBILE,
    phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE,
}
# A masked number shows this many last digits, so that support can tell two numbers apart.
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True, repr=False)
class Msisdn:
    """`digits`: country code and national number without "+", as E.164 writes them."""

    digits: str

    @classmethod
    def parse(cls, text: str) -> Msisdn:
        """Read `256772123456`, `+256 772 123456` or `00256772123456`.

        Raises ValueError with a sentence that doesn't repeat the number.
        """
        digits = text.strip().removeprefix("+").removeprefix("00")
        digits = digits.replace(" ", "").replace("-", "")
        if not (digits.isascii() and digits.isdigit() and 8 <= len(digits) <= 15):  # noqa: PLR2004
            raise ValueError("must be a mobile number in international form, such as 256772123456")
        number = _plainly(digits)
        if number is None:
            try:
                number = phonenumbers.parse(f"+{digits}")
            except phonenumbers.NumberParseException:
                raise ValueError("must start with a country code, such as 256") from None
        kind = phonenumbers.number_type(number)
        # is_valid_number() would do the same check once more.
        if kind == phonenumbers.PhoneNumberType.UNKNOWN:
            raise ValueError("is not a number that its country's numbering plan has")
        if kind not in _MOBILE:
            raise ValueError("is not a mobile number")
        return cls(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)[1:])

    @property
    def country(self) -> str:
        """ISO 3166 code of the number's country, such as UG."""
        found = phonenumbers.region_code_for_number(phonenumbers.parse(f"+{self.digits}"))
        return found or ""

    @property
    def national(self) -> str:
        """The national significant number, with a leading zero that belongs to it."""
        return phonenumbers.national_significant_number(phonenumbers.parse(f"+{self.digits}"))

    @property
    def masked(self) -> str:
        """What may appear in logs: `********456`."""
        return "*" * (len(self.digits) - _SHOWN) + self.digits[-_SHOWN:]

    def __repr__(self) -> str:
        return f"Msisdn({self.masked})"

    __str__ = __repr__


def _plainly(digits: str) -> phonenumbers.PhoneNumber | None:
    """The result of phonenumbers.parse() for plain cases, else None; a tenth of its work.

    parse() looks for letters, punctuation, extensions and trunk prefixes. Digits can only hold a
    trunk prefix. If the country's trunk prefix is zero, or there is none, a national number
    without a leading zero needs no change.
    """
    if digits[0] == "0":
        # No country code begins with zero.
        return None
    for length in range(1, 4):
        code = int(digits[:length])
        if code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE:
            region = phonenumbers.region_code_for_country_code(code)
            plan = phonenumbers.PhoneMetadata.metadata_for_region_or_calling_code(code, region)
            trunk = None if plan is None else plan.national_prefix_for_parsing
            if plan is None or digits[length] == "0" or trunk not in (None, "0"):
                return None
            return phonenumbers.PhoneNumber(code, int(digits[length:]))
    return None
