"""What a provider (rail) must be able to do. Pure: no framework, no network, no storage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, Protocol
from uuid import UUID

from payments_app.kernel.http.messages import HttpClient
from payments_app.kernel.money import Money
from payments_app.kernel.msisdn import Msisdn


class Mode(StrEnum):
    """Real money or not: `test` can't reach an account that moves real money."""

    LIVE = "live"
    TEST = "test"


class Verdict(StrEnum):
    """What one exchange with the provider proves.

    SUCCESSFUL, FAILED: the provider says the payment ended so.
    PENDING: the provider has it and hasn't ended it.
    REFUSED: the provider read this request and created nothing for it.
    NOT_SENT: this request had no effect and may be repeated (no connection, no token, throttled).
      A throttled one was sent, and counts as one that may have arrived: submission.py.
    DUPLICATE: the provider already has a payment under this reference.
    NOT_FOUND: the provider says it has none under this reference (now).
    UNKNOWN: anything else; only a status check can tell.
    """

    SUCCESSFUL = "SUCCESSFUL"
    FAILED = "FAILED"
    PENDING = "PENDING"
    REFUSED = "REFUSED"
    NOT_SENT = "NOT_SENT"
    DUPLICATE = "DUPLICATE"
    NOT_FOUND = "NOT_FOUND"
    UNKNOWN = "UNKNOWN"


class FailureCode(StrEnum):
    """Why a payment failed: our stable codes, whatever the provider. See failures.py."""

    PAYER_REJECTED = "payer_rejected"
    PAYER_DID_NOT_APPROVE = "payer_did_not_approve"
    PAYER_NOT_FOUND = "payer_not_found"
    PAYER_LIMIT_REACHED = "payer_limit_reached"
    PAYER_NOT_ACTIVE = "payer_not_active"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    PAYEE_NOT_FOUND = "payee_not_found"
    PAYEE_CANNOT_RECEIVE = "payee_cannot_receive"
    CANCELLED = "cancelled"
    CURRENCY_REFUSED = "currency_refused"
    REQUEST_REFUSED = "request_refused"
    PROVIDER_NOT_ALLOWED = "provider_not_allowed"
    PROVIDER_MISCONFIGURED = "provider_misconfigured"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROVIDER_ERROR = "provider_error"
    OTHER = "other"


# The `provider_code` for a provider's text that is no code.
UNREADABLE_CODE: Final = "unreadable"
PROVIDER_CODE_LENGTH_MAX: Final = 64
# The shortest national phone number has seven digits.
CODE_DIGITS_MAX: Final = 6
_CODE_FORM: Final = re.compile(rf"[A-Za-z0-9_.:-]{{0,{PROVIDER_CODE_LENGTH_MAX}}}")
_MAYBE_PHONE: Final = re.compile(rf"[0-9](?:[_.:-]*[0-9]){{{CODE_DIGITS_MAX},}}")


@dataclass(frozen=True, slots=True)
class Failure:
    """`provider_code` is the provider's own code ("" if it gave none).

    Whatever an adapter sets, it is a code or UNREADABLE_CODE: free text may name the payer. It is
    letters, digits and `_.-:`, at most 64 of them, and not more than six digits in a row, whatever
    marks are between these. The whole answer is in the encrypted evidence.
    """

    code: FailureCode
    provider_code: str

    def __post_init__(self) -> None:
        """For every adapter, a partner's too."""
        given = str(self.provider_code or "")
        if not _CODE_FORM.fullmatch(given) or _MAYBE_PHONE.search(given):
            given = UNREADABLE_CODE
        object.__setattr__(self, "provider_code", given)


# Reasons for an answer that could not be read. A 500 or a timeout isn't one: it proves nothing. If
# it lasts, a person must act, so the engine logs it, and makes the payment UNKNOWN.
UNREAD_REASONS: Final = frozenset(
    {
        "unreadable",
        "amount_unreadable",
        "token_unreadable",
        "unexpected_answer",
        # The transport's reason for what is no HTTP, or was cut.
        "broken_answer",
    }
)


@dataclass(frozen=True, slots=True)
class Observation:
    """One exchange, parsed. `http_status` and `body` are stored as evidence.

    `reason`: a constant word for logs and the payment's history, such as `accepted`, `timeout`. Of
    an answer that could not be read it is one of UNREAD_REASONS.
    `amount`: what the provider says it moved, when it says so.
    `requests_left`: how many requests of a submission may have arrived and created something.
    submission.py counts them; an adapter doesn't set it. None for anything but a submission, and
    for one whose adapter failed midway.
    """

    verdict: Verdict
    reason: str
    http_status: int | None = None
    body: bytes = field(default=b"", repr=False)
    failure: Failure | None = None
    provider_transaction_id: str | None = None
    amount: Money | None = None
    retry_after_s: float | None = None
    elapsed_s: float = 0.0
    requests_left: int | None = None

    @property
    def is_unread(self) -> bool:
        """Whether an answer was received that could not be read."""
        return self.reason in UNREAD_REASONS


class AccountKey(NamedTuple):
    """Which account at which provider: a tenant's own, or the platform's (`id` is None)."""

    provider: str
    id: UUID | None


@dataclass(frozen=True, slots=True)
class ProviderAccount:
    """Credentials at a provider: a tenant's own (`id`), or the platform's (`id` is None).

    `version` changes with the credentials, so that a token of the old ones isn't used again.
    """

    id: UUID | None
    provider: str
    mode: Mode
    base_url: str
    target_environment: str
    credentials: Mapping[str, str] = field(repr=False)
    version: str = ""

    @property
    def key(self) -> AccountKey:
        """Which account it is, whatever its credentials are."""
        return AccountKey(self.provider, self.id)


@dataclass(frozen=True, slots=True)
class PaymentOrder:
    """What is sent to the provider. `reference` (UUIDv4) was committed before this existed."""

    reference: UUID
    payment_id: UUID
    money: Money
    payer: Msisdn
    payer_message: str | None = None
    payee_note: str | None = None
    callback_url: str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What an account accepts.

    `currencies`: code → decimals that the provider accepts.
    `country`: the only country whose numbers may pay, or None.
    `text_pattern`/`text_length_max`: what a message to the payer may contain.
    `checks_per_s`: how many status checks per second are allowed at first, or None for no limit.
    The rate rises while the provider answers quickly, and falls when it refuses.
    """

    currencies: Mapping[str, int]
    country: str | None
    text_pattern: str
    text_length_max: int
    checks_per_s: float | None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What may be relied upon; the engine refuses to resend where it isn't declared.

    `idempotent_submit`: the same reference sent twice moves money once.
    `visible_after_s`: a NOT_FOUND younger than this (since the last submission) proves nothing.
    `resend_after_s`: a NOT_FOUND older than this lets the same reference be sent again.
    `payer_window_s`: how long the payer has to approve.
    """

    idempotent_submit: bool
    visible_after_s: float
    resend_after_s: float
    payer_window_s: float


class Provider(Protocol):
    """An adapter: it only translates. It holds no state, reads no setting, logs nothing."""

    code: str
    capabilities: Capabilities
    credential_names: tuple[str, ...]

    def terms(self, account: ProviderAccount) -> Terms:
        """What this account accepts. Raises ValueError for an unknown target environment."""
        ...

    def merchant(self, account: ProviderAccount) -> str:
        """Who the account is at the provider: the owner of its references, who gets the money.

        It stays the same when secrets change. What another merchant learns of a reference proves
        nothing about it.
        """
        ...

    def prepare(self, account: ProviderAccount, http_client: HttpClient) -> Observation | None:
        """Get ready to send (a token): None when ready, else a NOT_SENT observation.

        It sends nothing that can create a payment, and proves nothing about one.
        """
        ...

    def submit(
        self, order: PaymentOrder, account: ProviderAccount, http_client: HttpClient
    ) -> Observation:
        """Request the money from the payer, under `order.reference`.

        The verdict is about the whole. An adapter that sends a second request inside, such as with
        a new token after a 401, returns what the last answer proves of its own request;
        submission.py makes it UNKNOWN if that doesn't prove it of the first. Whether a request can
        create a payment: `HttpRequest.creates_nothing`. An adapter must not keep the client.
        """
        ...

    def check(
        self, order: PaymentOrder, account: ProviderAccount, http_client: HttpClient
    ) -> Observation:
        """Check the status of `order.reference` at the provider."""
        ...

    def probe(self, account: ProviderAccount, http_client: HttpClient) -> Observation:
        """Try the credentials without moving money: PENDING means that they work."""
        ...
