"""The body of a creating call: what MTN accepts, what it refuses, and how (1.8, 1.10)."""

import re
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import urlsplit

from simulator.accounts import ANY_HOST
from simulator.messages import RefusedError, Reply, Request, coded, request_rejected
from simulator.mtn_access import Caller
from simulator.scenarios import ENVIRONMENTS, decimals_of

_AMOUNT = re.compile(r"[0-9]{1,15}(\.[0-9]{1,4})?")
_MSISDN = re.compile(r"[0-9]{1,20}")
_PARTY_TYPES = frozenset({"MSISDN", "EMAIL", "PARTY_CODE"})
_TEXT_MAX = 160
# The firewall in front of MTN rejects the ampersand; MTN itself names the apostrophe (1.8).
_FIREWALLED = "&"
_REFUSED = "'"


@dataclass(frozen=True, slots=True)
class Body:
    """A valid body; only its currency is not checked yet."""

    amount: str
    amount_minor: int
    currency: str
    party_type: str
    party: str
    external_id: str | None
    payer_message: str | None
    payee_note: str | None


def read_body(request: Request, party_field: str) -> Body:
    """Read the body, or refuse it: mostly with an empty 400."""
    document = request.document()
    if not isinstance(document, dict):
        raise RefusedError(Reply(400))
    currency = _text(document, "currency")
    amount = _text(document, "amount")
    if not currency or not amount:
        raise RefusedError(Reply(400))
    party_type, party = _party(document.get(party_field))
    return Body(
        amount=amount,
        amount_minor=_minor(amount, currency),
        currency=currency,
        party_type=party_type,
        party=party,
        external_id=_text(document, "externalId"),
        payer_message=_note(document, "payerMessage"),
        payee_note=_note(document, "payeeNote"),
    )


def callback_url(request: Request) -> str | None:
    """Read X-Callback-Url, if present: an empty or malformed one is a 400 (1.6)."""
    url = request.headers.get("x-callback-url")
    if url is None:
        return None
    if not url.startswith(("http://", "https://")) or not _host(url):
        raise RefusedError(Reply(400))
    return url


def check_callback_host(caller: Caller, url: str | None) -> None:
    """Refuse a callback host other than the one registered for the API user."""
    registered = caller.account.callback_host
    if url is not None and registered != ANY_HOST and _host(url) != registered.lower():
        raise RefusedError(coded("INVALID_CALLBACK_URL_HOST"))


def check_currency(caller: Caller, currency: str) -> None:
    """Refuse a currency that is not one of the target environment's."""
    if currency not in ENVIRONMENTS[caller.environment]:
        raise RefusedError(coded("INVALID_CURRENCY"))


def _host(url: str) -> str | None:
    """Read the host; None when the URL is malformed, in its port too."""
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port
    except ValueError:
        return None
    return None if port == 0 else host


def _text(document: dict[str, object], name: str) -> str | None:
    """Read a field as text: the sandbox accepts JSON numbers too (1.8)."""
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RefusedError(Reply(400))
    return str(value)


def _minor(amount: str, currency: str) -> int:
    if not _AMOUNT.fullmatch(amount):
        raise RefusedError(Reply(400))
    minor = Decimal(amount).scaleb(decimals_of(currency))
    if minor <= 0 or minor != minor.to_integral_value():
        raise RefusedError(Reply(400))
    return int(minor)


def _party(party: object) -> tuple[str, str]:
    if not isinstance(party, dict):
        raise RefusedError(Reply(400))
    if not party:
        # The live sandbox answers an empty party object with a 500 (1.10).
        raise RefusedError(coded("INTERNAL_PROCESSING_ERROR"))
    party_type = _text(party, "partyIdType")
    identity = _text(party, "partyId")
    if party_type not in _PARTY_TYPES or not identity:
        raise RefusedError(Reply(400))
    if party_type == "MSISDN" and not _MSISDN.fullmatch(identity):
        raise RefusedError(Reply(400))
    return party_type, identity


def _note(document: dict[str, object], name: str) -> str | None:
    note = _text(document, name)
    if note is None:
        return None
    if _FIREWALLED in note:
        raise RefusedError(request_rejected())
    if _REFUSED in note or len(note) > _TEXT_MAX:
        raise RefusedError(Reply(400))
    return note
