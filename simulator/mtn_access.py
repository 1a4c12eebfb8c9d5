"""The access checks of MTN's calls, in the order of 1.17 item 3, and the token endpoint (1.5)."""

import base64
import binascii
import hmac
import re
from dataclasses import dataclass

from simulator.accounts import Account
from simulator.messages import (
    BAD_TOKEN,
    NO_KEY,
    NO_SUCH_KEY,
    RefusedError,
    Reply,
    Request,
    azure,
    coded,
    forbidden_page,
    json_reply,
    request_rejected,
    token_error,
)
from simulator.scenarios import ENVIRONMENTS
from simulator.simulation import Simulation

_UUID4 = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE
)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller, after all checks."""

    account: Account
    product: str
    environment: str


def subscription_key(request: Request) -> str:
    """Read the key, from the header or the query parameter (1.3)."""
    key = request.header("ocp-apim-subscription-key") or request.argument("subscription-key")
    if not key:
        raise RefusedError(azure(401, NO_KEY))
    return key


def admit(simulation: Simulation, request: Request, product: str) -> Caller:
    """Check the subscription key, then the token, then the target environment."""
    _check_platform(simulation, request)
    _check_subscription(simulation, request, product)
    scheme, _, token = request.header("authorization").partition(" ")
    store = simulation.store
    account = store.accounts.bearer(token.strip(), product, store.clock.now())
    if scheme.lower() != "bearer" or account is None:
        raise RefusedError(azure(401, BAD_TOKEN))
    environment = request.header("x-target-environment")
    if environment not in ENVIRONMENTS:
        raise RefusedError(coded("NOT_ALLOWED_TARGET_ENVIRONMENT"))
    return Caller(account, product, environment)


def caller_of(simulation: Simulation, request: Request, product: str | None) -> str | None:
    """Find the API user that calls, by its token or its password; None if it is unknown."""
    scheme, _, token = request.header("authorization").partition(" ")
    if scheme.lower() == "basic":
        account = _basic(simulation, request)
    else:
        store = simulation.store
        account = store.accounts.bearer(token.strip(), product or "", store.clock.now())
    return account.api_user if account else None


def new_reference(request: Request) -> str:
    """Read X-Reference-Id of a creating call: a UUID, version 4."""
    reference_id = request.header("x-reference-id")
    if not _UUID4.fullmatch(reference_id):
        raise RefusedError(Reply(400))
    return reference_id.lower()


def reference_in_path(reference_id: str) -> str:
    """Read a reference in a path; a malformed one is a 400, as in the live sandbox (1.10)."""
    if not _UUID.fullmatch(reference_id):
        raise RefusedError(Reply(400))
    return reference_id.lower()


def issue_token(simulation: Simulation, request: Request, product: str) -> Reply:
    """Issue a token: POST /{product}/token/."""
    if "content-length" not in request.headers and "transfer-encoding" not in request.headers:
        return Reply(411)
    if request.header("content-type").startswith(_FORM):
        return request_rejected()
    _check_platform(simulation, request)
    _check_subscription(simulation, request, product)
    is_new = simulation.settings.platform == "new"
    if is_new and request.header("x-target-environment") not in ENVIRONMENTS:
        return token_error(400, "Invalid or missing X-Target-Environment header")
    account = _basic(simulation, request)
    if account is None:
        return token_error(401, "invalid_client") if is_new else token_error(500, "login_failed")
    store = simulation.store
    ttl_s = simulation.settings.token_ttl_s
    token = store.accounts.issue_token(account, product, store.clock.now() + ttl_s)
    return json_reply(
        200, {"access_token": token, "token_type": "access_token", "expires_in": int(ttl_s)}
    )


def _check_platform(simulation: Simulation, request: Request) -> None:
    """Refuse the User-Agent of Python's requests, as the new platform's gateway does (1.2)."""
    if simulation.settings.platform == "new" and "python-requests" in request.header("user-agent"):
        raise RefusedError(forbidden_page())


def _check_subscription(simulation: Simulation, request: Request, product: str) -> None:
    if not simulation.store.accounts.is_subscribed(subscription_key(request), product):
        raise RefusedError(azure(401, NO_SUCH_KEY))


def _basic(simulation: Simulation, request: Request) -> Account | None:
    scheme, _, encoded = request.header("authorization").partition(" ")
    try:
        api_user, _, api_key = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    account = simulation.store.accounts.find(api_user)
    if scheme.lower() != "basic" or account is None or account.api_key is None:
        return None
    return account if hmac.compare_digest(account.api_key.encode(), api_key.encode()) else None
