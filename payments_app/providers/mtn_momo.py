"""MTN MoMo Open API, Collections: "request to pay" and its status.

Rules come from the developer portal (momodeveloper.mtn.com, read in autumn 2026) and from what
its sandbox answers. The reference is our X-Reference-Id: MTN refuses a second request under it
with 409 and moves nothing, whatever became of the first; so the same reference may be resent.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from payments_app.kernel.money import EXPONENTS
from payments_app.kernel.wire import Answer, Call, LeaseLost, Silence, Wire
from payments_app.providers import mtn_answers
from payments_app.providers.contract import (
    Capabilities,
    Observation,
    PaymentOrder,
    ProviderAccount,
    Terms,
    Verdict,
)
from payments_app.providers.tokens import Minted, TokenCache

_PRODUCT: Final = "collection"
_PAY: Final = "v1_0/requesttopay"
# The new platform was seen to take 10 to 20 s for a token.
_TOKEN_TIMEOUT_S: Final = 30.0
_CALL_TIMEOUT_S: Final = 15.0
# "Do not exceed 10 status requests per second" (best practices); the sandbox names no limit.
_CHECKS_PER_S: Final = 10.0
_NO_HEADERS: Final[Mapping[str, str]] = {}

# X-Target-Environment → country and currencies (portal, "target environments").
_ENVIRONMENTS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "mtnbenin": ("BJ", ("XOF",)),
    "mtncameroon": ("CM", ("XAF",)),
    "mtncongo": ("CG", ("XAF",)),
    "mtnghana": ("GH", ("GHS",)),
    "mtnguineabissau": ("GW", ("XOF",)),
    "mtnguineaconakry": ("GN", ("GNF",)),
    "mtnivorycoast": ("CI", ("XOF",)),
    "mtnliberia": ("LR", ("LRD", "USD")),
    "mtnnigeria": ("NG", ("NGN",)),
    "mtnrwanda": ("RW", ("RWF",)),
    "mtnsouthafrica": ("ZA", ("ZAR",)),
    "mtnsouthsudan": ("SS", ("SSP",)),
    "mtnswaziland": ("SZ", ("SZL",)),
    "mtnuganda": ("UG", ("UGX",)),
    "mtnzambia": ("ZM", ("ZMW",)),
}
_SANDBOX: Final = "sandbox"
# What the portal and its users found to be taken: an apostrophe gives 400, "&" a firewall's page.
_TEXT_PATTERN: Final = r"^[A-Za-z0-9 .,_:/-]*$"
_TEXT_LENGTH_MAX: Final = 160


class MtnMomo:
    """Collections through one `requesttopay` per payment."""

    code = "mtn_momo"
    credential_names = (
        "collection_subscription_key",
        "collection_api_user",
        "collection_api_key",
    )
    capabilities = Capabilities(
        idempotent_submit=True,
        # A 404 after a 202 has been reported; five minutes is what MTN gives a payment at most.
        visible_after_s=300.0,
        # A resend under the same reference can't charge twice, so there is little to wait for.
        resend_after_s=3.0,
        # "The payer has five minutes to approve" (portal, the one figure that MTN gives).
        payer_window_s=300.0,
    )

    def __init__(self, tokens: TokenCache) -> None:
        self._tokens = tokens

    def terms(self, account: ProviderAccount) -> Terms:
        """By target environment; the sandbox knows EUR only, and numbers of any country."""
        environment = account.target_environment
        country: str | None = None
        if environment == _SANDBOX:
            currencies = {"EUR"}
        elif environment in _ENVIRONMENTS:
            country, codes = _ENVIRONMENTS[environment]
            currencies = set(codes)
        else:
            raise ValueError(f"{environment!r} is not a target environment of MTN that we know")
        return Terms(
            currencies={code: EXPONENTS[code] for code in sorted(currencies)},
            country=country,
            text_pattern=_TEXT_PATTERN,
            text_length_max=_TEXT_LENGTH_MAX,
            checks_per_s=None if environment == _SANDBOX else _CHECKS_PER_S,
        )

    def merchant(self, account: ProviderAccount) -> str:
        """The API user: MTN keeps references by it, and its key can be issued anew."""
        return account.credentials["collection_api_user"]

    def prepare(self, account: ProviderAccount, wire: Wire) -> Observation | None:
        """Have a token at hand."""
        token = self._token(account, wire)
        return token if isinstance(token, Observation) else None

    def submit(self, order: PaymentOrder, account: ProviderAccount, wire: Wire) -> Observation:
        """POST requesttopay."""
        body = json.dumps(_payment(order)).encode()
        headers = {"X-Reference-Id": str(order.reference), "Content-Type": "application/json"}
        if order.callback_url:
            # Given empty it would be a 400.
            headers["X-Callback-Url"] = order.callback_url
        call = _call("POST", account, _PAY, operation="submit", headers=headers, body=body)
        match self._send(call, account, wire):
            case Observation() as no_token:
                return no_token
            case Silence() as silence:
                verdict = Verdict.UNKNOWN if silence.sent else Verdict.NOT_SENT
                return Observation(verdict, silence.why, elapsed_s=silence.elapsed_s)
            case Answer() as answer:
                return mtn_answers.submitted(answer)

    def check(self, order: PaymentOrder, account: ProviderAccount, wire: Wire) -> Observation:
        """GET requesttopay by reference. What isn't an answer about the payment is UNKNOWN."""
        call = _call("GET", account, f"{_PAY}/{order.reference}", operation="check")
        match self._send(call, account, wire):
            case Observation() as no_token:
                return replace(no_token, verdict=Verdict.UNKNOWN)
            case Silence() as silence:
                return Observation(Verdict.UNKNOWN, silence.why, elapsed_s=silence.elapsed_s)
            case Answer() as answer:
                return mtn_answers.checked(answer)

    def probe(self, account: ProviderAccount, wire: Wire) -> Observation:
        """A new token shows user and key, the balance the subscription and the environment."""
        minted = _mint(account, wire)
        if isinstance(minted, Observation):
            return replace(minted, verdict=Verdict.REFUSED) if minted.failure else minted
        call = _call("GET", account, "v1_0/account/balance", operation="balance")
        answer = wire.send(_under(minted.token, call))
        if isinstance(answer, Silence):
            return Observation(Verdict.UNKNOWN, answer.why, elapsed_s=answer.elapsed_s)
        return mtn_answers.balance(answer)

    def _send(
        self, call: Call, account: ProviderAccount, wire: Wire
    ) -> Answer | Silence | Observation:
        """Send under a token, and once more under a new one when the first was refused."""
        token = self._token(account, wire)
        if isinstance(token, Observation):
            return token
        first = wire.send(_under(token, call))
        if not isinstance(first, Answer) or first.status != HTTPStatus.UNAUTHORIZED:
            if isinstance(first, Answer):
                self._tokens.note_accepted(token)
            return first
        if not self._tokens.discard(account, _PRODUCT, token):
            # New tokens are refused as well: no further one is minted for now.
            return first
        return self._send_again(call, account, wire, first)

    def _send_again(
        self, call: Call, account: ProviderAccount, wire: Wire, first: Answer
    ) -> Answer | Silence:
        """Once more, under a new token.

        The first may have been taken although its answer was a 401. So a second that did not leave,
        or was throttled, leaves the first one's answer standing; what a refusal of the second proves
        is judged in submission.py.
        """
        try:
            token = self._token(account, wire)
            if isinstance(token, Observation):
                return first
            second = wire.send(_under(token, call))
        except LeaseLost:
            return first
        if isinstance(second, Silence):
            return second if second.sent else first
        if second.status == HTTPStatus.UNAUTHORIZED:
            self._tokens.note_refused(account, _PRODUCT, token)
        else:
            self._tokens.note_accepted(token)
        return first if second.status == HTTPStatus.TOO_MANY_REQUESTS else second

    def _token(self, account: ProviderAccount, wire: Wire) -> str | Observation:
        return self._tokens.token(account, _PRODUCT, lambda: _mint(account, wire))


def _mint(account: ProviderAccount, wire: Wire) -> Minted | Observation:
    """POST token/: no body, but its length (without: 411; with a form: a firewall's page).

    The new platform wants the target environment here too; the old one doesn't mind.
    """
    names = (account.credentials["collection_api_user"], account.credentials["collection_api_key"])
    basic = base64.b64encode(":".join(names).encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Length": "0"}
    call = _call("POST", account, "token/", operation="token", headers=headers)
    answer = wire.send(replace(call, timeout_s=_TOKEN_TIMEOUT_S, creates_nothing=True))
    if isinstance(answer, Silence):
        why = f"token_{answer.why}"
        return Observation(Verdict.NOT_SENT, why, elapsed_s=answer.elapsed_s)
    return mtn_answers.minted(answer)


def _call(
    method: str,
    account: ProviderAccount,
    path: str,
    *,
    operation: str,
    headers: Mapping[str, str] = _NO_HEADERS,
    body: bytes | None = None,
) -> Call:
    """A call to the product's root; a doubled slash in an address would be a 400."""
    return Call(
        method,
        f"{account.base_url.rstrip('/')}/{_PRODUCT}/{path}",
        {
            "Ocp-Apim-Subscription-Key": account.credentials["collection_subscription_key"],
            "X-Target-Environment": account.target_environment,
            **headers,
        },
        body,
        _CALL_TIMEOUT_S,
        MtnMomo.code,
        operation,
    )


def _under(token: str, call: Call) -> Call:
    return replace(call, headers={**call.headers, "Authorization": f"Bearer {token}"})


def _payment(order: PaymentOrder) -> dict[str, object]:
    """The body of requesttopay.

    A whole amount goes without decimals: whether markets with cents take them isn't published,
    and one without is taken everywhere.
    """
    body: dict[str, object] = {
        "amount": str(order.money).removesuffix(".00"),
        "currency": order.money.currency,
        "externalId": str(order.payment_id),
        "payer": {"partyIdType": "MSISDN", "partyId": order.payer.digits},
    }
    if order.payer_message is not None:
        body["payerMessage"] = order.payer_message
    if order.payee_note is not None:
        body["payeeNote"] = order.payee_note
    return body
