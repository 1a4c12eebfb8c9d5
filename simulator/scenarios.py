"""The sandbox's magic numbers and MTN's target environments, as data.

Source: provider facts 1.14 (matrix) and 1.15 (environments). Values without a source are marked.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum


class Status(StrEnum):
    """The states of a payment (1.9)."""

    PENDING = "PENDING"
    SUCCESSFUL = "SUCCESSFUL"
    FAILED = "FAILED"


class Timing(Enum):
    """When a scenario ends; the lengths are settings."""

    PROMPT = "approval_delay_s"
    DELAYED = "delayed_success_s"
    STUCK = "stuck_pending_s"


@dataclass(frozen=True, slots=True)
class Scenario:
    """How a payment ends, and when."""

    status: Status
    reason: str | None = None
    timing: Timing = Timing.PROMPT


SUCCEEDS = Scenario(Status.SUCCESSFUL)

_MAGIC_PREFIX = "467331234"
# The sandbox's numbers are Swedish, and a market's account accepts its own country's numbers only.
# These are the simulator's own, with the same endings: MTN has no such numbers.
_MARKET_PREFIXES = ("2567700123", "2609600123")


def _failing(reason: str) -> Scenario:
    return Scenario(Status.FAILED, reason)


_SHARED = {
    "50": _failing("INTERNAL_PROCESSING_ERROR"),
    "51": _failing("APPROVAL_REJECTED"),
    "52": _failing("EXPIRED"),
    "53": Scenario(Status.SUCCESSFUL, timing=Timing.STUCK),
    "54": Scenario(Status.SUCCESSFUL, timing=Timing.DELAYED),
    # The sources say "transferType unknown" and give no code; this code is the simulator's.
    "64": _failing("TRANSFER_TYPE_UNKNOWN"),
}

_REQUEST_TO_PAY_REASONS = {
    "55": "PAYER_NOT_FOUND",
    "56": "PAYEE_NOT_ALLOWED_TO_RECEIVE",
    "57": "NOT_ALLOWED",
    "58": "NOT_ALLOWED_TARGET_ENVIRONMENT",
    "59": "INVALID_CALLBACK_URL_HOST",
    "60": "INVALID_CURRENCY",
    "61": "INTERNAL_PROCESSING_ERROR",
    "62": "SERVICE_UNAVAILABLE",
    "63": "COULD_NOT_PERFORM_TRANSACTION",
}

_TRANSFER_REASONS = {
    "55": "NOT_ENOUGH_FUNDS",
    "56": "PAYER_LIMIT_REACHED",
    "57": "PAYEE_NOT_FOUND",
    "58": "NOT_ALLOWED",
    "59": "NOT_ALLOWED_TARGET_ENVIRONMENT",
    "60": "INVALID_CALLBACK_URL_HOST",
    "61": "INVALID_CURRENCY",
    "62": "INTERNAL_PROCESSING_ERROR",
    "63": "SERVICE_UNAVAILABLE",
}


def _matrix(reasons: dict[str, str]) -> dict[str, Scenario]:
    endings = _SHARED | {ending: _failing(reason) for ending, reason in reasons.items()}
    prefixes = (_MAGIC_PREFIX, *_MARKET_PREFIXES)
    return {
        prefix + ending: scenario for prefix in prefixes for ending, scenario in endings.items()
    }


REQUEST_TO_PAY = _matrix(_REQUEST_TO_PAY_REASONS)
TRANSFER = _matrix(_TRANSFER_REASONS)

# The account holder's six special answers, in the order in which 1.14 lists numbers, e-mails and
# party codes. None is the answer `{"result": false}`; a word is an error code.
_HOLDER_ANSWERS = (
    "RESOURCE_NOT_FOUND",
    None,
    "NOT_ALLOWED",
    "NOT_ALLOWED_TARGET_ENVIRONMENT",
    "INTERNAL_PROCESSING_ERROR",
    "SERVICE_UNAVAILABLE",
)
_HOLDER_NUMBERS = tuple(f"{_MAGIC_PREFIX}{ending}" for ending in range(50, 56))
_HOLDER_EMAILS = tuple(
    f"{name}@email.com"
    for name in (
        "notfound",
        "notactive",
        "notallowed",
        "notallowedtargetenvironment",
        "internalprocessingerror",
        "serviceunavailable",
    )
)
_HOLDER_PARTY_CODES = (
    "5cecb5a7-8bd0-4f49-87b1-8eb9ecc7b7bc",
    "b0040b3c-b426-4a90-af6e-673e65861cd7",
    "4d5f500f-c385-4901-9be5-25b6d36ad220",
    "d2265f9b-0c22-496d-908f-79a65ad66266",
    "8f548a78-ceb8-4d12-a243-5640b91e91a4",
    "5585c07a4-2c80-42f7-9e73-e586b36dee68",  # malformed as published
)
ACCOUNT_HOLDER: dict[str, str | None] = {
    identity: answer
    for identities in (_HOLDER_NUMBERS, _HOLDER_EMAILS, _HOLDER_PARTY_CODES)
    for identity, answer in zip(identities, _HOLDER_ANSWERS, strict=True)
}

BASIC_USER_INFO = {
    "sub": "0",
    "given_name": "Sand",
    "family_name": "Box",
    "birthdate": "1976-08-13",
    "locale": "sv_SE",
    "gender": "MALE",
    "updated_at": 1504185600,
}

# Target environment → the currencies of its wallets.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "sandbox": ("EUR",),
    "mtnuganda": ("UGX",),
    "mtnghana": ("GHS",),
    "mtnivorycoast": ("XOF",),
    "mtnzambia": ("ZMW",),
    "mtncameroon": ("XAF",),
    "mtnbenin": ("XOF",),
    "mtncongo": ("XAF",),
    "mtnswaziland": ("SZL",),
    "mtnguineaconakry": ("GNF",),
    "mtnsouthafrica": ("ZAR",),
    "mtnliberia": ("LRD", "USD"),
    "mtnrwanda": ("RWF",),
    "mtnnigeria": ("NGN",),
    "mtnsouthsudan": ("SSP",),
    "mtnguineabissau": ("XOF",),
}

CURRENCIES_WITHOUT_DECIMALS = frozenset({"UGX", "XOF", "XAF", "GNF", "RWF"})


def decimals_of(currency: str) -> int:
    """How many decimals an amount of this currency may have."""
    return 0 if currency in CURRENCIES_WITHOUT_DECIMALS else 2
