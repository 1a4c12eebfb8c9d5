"""Checks on input of the admin API. Each names the field and says what it should be."""

from collections.abc import Callable
from decimal import Decimal, InvalidOperation

Check = Callable[[str, object], object]


class InvalidInputError(ValueError):
    """An admin request that cannot be used."""

    def __init__(self, field: str, message: str, *, status: int = 400) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.status = status


def seconds(field: str, value: object) -> float:
    """Check for zero or more seconds."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < float("inf")
    ):
        raise InvalidInputError(field, "must be a number of seconds, 0 or more")
    return float(value)


def seconds_or_never(field: str, value: object) -> float | None:
    """Check for seconds, or null for never."""
    return None if value is None else seconds(field, value)


def probability(field: str, value: object) -> float:
    """Check for a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidInputError(field, "must be a number between 0 and 1")
    return float(value)


def count(field: str, value: object) -> int:
    """Check for a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(field, "must be a whole number, 1 or more")
    return value


def whole(field: str, value: object) -> int:
    """Check for any whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError(field, "must be a whole number")
    return value


def text(field: str, value: object) -> str:
    """Check for a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise InvalidInputError(field, "must be a text, not empty")
    return value


def amount(field: str, value: object) -> str:
    """Check for a decimal number in a text."""
    try:
        Decimal(text(field, value))
    except InvalidOperation:
        raise InvalidInputError(field, 'must be a decimal number in a text, as "12.50"') from None
    return str(value)


def one_of(*choices: str) -> Check:
    """Make a check that allows these words only."""

    def check(field: str, value: object) -> object:
        if value not in choices:
            raise InvalidInputError(field, "must be one of: " + ", ".join(choices))
        return value

    return check


def optional(check: Check) -> Check:
    """Make a check that also allows null."""

    def checked(field: str, value: object) -> object:
        return None if value is None else check(field, value)

    return checked


def mapping(field: str, value: object) -> dict[str, object]:
    """Check for a JSON object."""
    if not isinstance(value, dict):
        raise InvalidInputError(field, "must be a JSON object")
    return value


def known_fields(given: dict[str, object], allowed: set[str], prefix: str = "") -> None:
    """Refuse an unknown field, rather than ignore a typing error."""
    for field in given:
        if field not in allowed:
            names = ", ".join(sorted(allowed)) or "none"
            raise InvalidInputError(prefix + field, f"is not known here; known: {names}")
