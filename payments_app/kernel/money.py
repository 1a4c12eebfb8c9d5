"""Money is an integer of minor units with its currency. No floats, no mixed currencies."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# ISO 4217 exponents of the currencies of the providers that we know.
EXPONENTS: Final[dict[str, int]] = {
    "CDF": 2,
    "EUR": 2,
    "GHS": 2,
    "GNF": 0,
    "KES": 2,
    "LRD": 2,
    "LSL": 2,
    "MGA": 2,
    "MWK": 2,
    "MZN": 2,
    "NGN": 2,
    "RWF": 0,
    "SCR": 2,
    "SSP": 2,
    "SZL": 2,
    "TZS": 2,
    "UGX": 0,
    "USD": 2,
    "XAF": 0,
    "XOF": 0,
    "ZAR": 2,
    "ZMW": 2,
}
# Far above any wallet's limit, far below the maximum of BIGINT.
MINOR_MAX: Final = 10**15
_DECIMAL: Final = re.compile(r"(0|[1-9][0-9]{0,15})(?:\.([0-9]{1,6}))?")


@dataclass(frozen=True, slots=True)
class Money:
    """An amount: `minor` units (cents, or whole units where the currency has none)."""

    minor: int
    currency: str

    def __post_init__(self) -> None:
        if type(self.minor) is not int:
            raise TypeError(f"minor units are an int, not {type(self.minor).__name__}")
        if self.currency not in EXPONENTS:
            raise ValueError(f"{self.currency!r} is not a currency that we know")
        if not 0 <= self.minor <= MINOR_MAX:
            raise ValueError("the amount is out of range")

    @classmethod
    def parse(cls, amount: int | str, currency: str, *, decimals: int | None = None) -> Money:
        """Read an amount in major units: an int, or a plain decimal string such as "12.50".

        `decimals`: how many decimals the provider accepts, if fewer than in ISO 4217.
        Raises ValueError with a sentence for the caller.
        """
        if type(amount) not in (int, str):
            raise TypeError(f"an amount is an int or a str, not {type(amount).__name__}")
        if currency not in EXPONENTS:
            raise ValueError(f"{currency!r} is not a currency that we know")
        found = _DECIMAL.fullmatch(str(amount))
        if found is None:
            raise ValueError('must be a whole number or a decimal string such as "12.50"')
        whole, fraction = found[1], (found[2] or "").rstrip("0")
        allowed = EXPONENTS[currency] if decimals is None else min(decimals, EXPONENTS[currency])
        if len(fraction) > allowed:
            raise ValueError(f"{currency} takes at most {allowed} decimals here")
        return cls(int(whole + fraction.ljust(EXPONENTS[currency], "0")), currency)

    def __str__(self) -> str:
        """Major units as a decimal string: "1000" for UGX, "12.50" for KES."""
        exponent = EXPONENTS[self.currency]
        if exponent == 0:
            return str(self.minor)
        digits = str(self.minor).rjust(exponent + 1, "0")
        return f"{digits[:-exponent]}.{digits[-exponent:]}"

    def __add__(self, other: Money) -> Money:
        if other.currency != self.currency:
            raise ValueError(f"can't add {other.currency} to {self.currency}")
        return Money(self.minor + other.minor, self.currency)
