"""MTN MoMo Open API, Collections: "request to pay" and its status.

Rules come from the developer portal (momodeveloper.mtn.com, read in autumn 2026) and from its
sandbox's answers. The reference is our X-Reference-Id: MTN refuses a second request with it by a
409 and moves no money, whatever became of the first; so the same reference may be resent.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Final

from payments_app.kernel.http.messages import (
    HttpClient,
    HttpRequest,
    HttpResponse,
    LeaseLost,
    NoResponse,
)
from payments_app.kernel.money import EXPONENTS
from payments_app.providers import mtn_answers
from payments_app.providers.contract import (
    Capabilities,
    Observation,
    PaymentOrder,
    ProviderAccount,
    Terms,
    Verdict,
)
from payments_app.providers.tokens import IssuedToken, TokenCache

_PRODUCT: Final = "collection"
_PAY: Final = "v1_0/requesttopay"
# The new platform took 10 to 20 s for a token.
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
# What the portal and its users say is accepted: an apostrophe gives 400, "&" the firewall's page.
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
        # A 404 after a 202 has been reported; MTN gives a payment five minutes at most.
        visible_after_s=300.0,
        # A resend with the same reference can't charge twice, so there is little reason to wait.
        resend_after_s=3.0,
        # "The payer has five minutes to approve" (portal, the one figure that MTN gives).
        payer_window_s=300.0,
    )

    def __init__(self, tokens: TokenCache) -> None:
        self._tokens = tokens

    def terms(self, account: ProviderAccount) -> Terms:
        """By target environment; the sandbox accepts EUR only, and numbers of any country."""
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
        """The API user: MTN stores references by it, and its key may be replaced."""
        return account.credentials["collection_api_user"]

    def prepare(self, account: ProviderAccount, http_client: HttpClient) -> Observation | None:
        """Get a token."""
        token = self._token(account, http_client)
        return token if isinstance(token, Observation) else None

    def submit(
        self, order: PaymentOrder, account: ProviderAccount, http_client: HttpClient
    ) -> Observation:
        """POST requesttopay."""
        body = json.dumps(_payment(order)).encode()
        headers = {"X-Reference-Id": str(order.reference), "Content-Type": "application/json"}
        if order.callback_url:
            # An empty one would give a 400.
            headers["X-Callback-Url"] = order.callback_url
        call = _call("POST", account, _PAY, operation="submit", headers=headers, body=body)
        match self._send(call, account, http_client):
            case Observation() as no_token:
                return no_token
            case NoResponse() as silence:
                verdict = Verdict.UNKNOWN if silence.sent else Verdict.NOT_SENT
                return Observation(verdict, silence.why, elapsed_s=silence.elapsed_s)
            case HttpResponse() as answer:
                return mtn_answers.submitted(answer)

    def check(
        self, order: PaymentOrder, account: ProviderAccount, http_client: HttpClient
    ) -> Observation:
        """GET requesttopay by reference. What isn't an answer about the payment is UNKNOWN."""
        call = _call("GET", account, f"{_PAY}/{order.reference}", operation="check")
        match self._send(call, account, http_client):
            case Observation() as no_token:
                return replace(no_token, verdict=Verdict.UNKNOWN)
            case NoResponse() as silence:
                return Observation(Verdict.UNKNOWN, silence.why, elapsed_s=silence.elapsed_s)
            case HttpResponse() as answer:
                return mtn_answers.checked(answer)

    def probe(self, account: ProviderAccount, http_client: HttpClient) -> Observation:
        """A new token proves user and key, the balance the subscription and the environment."""
        issued = _fetch_token(account, http_client)
        if isinstance(issued, Observation):
            return replace(issued, verdict=Verdict.REFUSED) if issued.failure else issued
        call = _call("GET", account, "v1_0/account/balance", operation="balance")
        answer = http_client.send(_under(issued.token, call))
        if isinstance(answer, NoResponse):
            return Observation(Verdict.UNKNOWN, answer.why, elapsed_s=answer.elapsed_s)
        return mtn_answers.balance(answer)

    def _send(
        self, call: HttpRequest, account: ProviderAccount, http_client: HttpClient
    ) -> HttpResponse | NoResponse | Observation:
        """Send with a token, and once more with a new one if the first was refused."""
        token = self._token(account, http_client)
        if isinstance(token, Observation):
            return token
        first = http_client.send(_under(token, call))
        if not isinstance(first, HttpResponse) or first.status != HTTPStatus.UNAUTHORIZED:
            if isinstance(first, HttpResponse):
                self._tokens.note_accepted(token)
            return first
        if not self._tokens.discard(account, _PRODUCT, token):
            # New tokens are refused as well: no further one is fetched for now.
            return first
        return self._send_again(call, account, http_client, first)

    def _send_again(
        self,
        call: HttpRequest,
        account: ProviderAccount,
        http_client: HttpClient,
        first: HttpResponse,
    ) -> HttpResponse | NoResponse:
        """Send once more, with a new token.

        The first may have been accepted although its answer was a 401. So if the second was not
        sent, or was throttled, the first one's answer is returned. What a refusal of the second
        proves is decided in submission.py.
        """
        try:
            token = self._token(account, http_client)
            if isinstance(token, Observation):
                return first
            second = http_client.send(_under(token, call))
        except LeaseLost:
            return first
        if isinstance(second, NoResponse):
            return second if second.sent else first
        if second.status == HTTPStatus.UNAUTHORIZED:
            self._tokens.note_refused(account, _PRODUCT, token)
        else:
            self._tokens.note_accepted(token)
        return first if second.status == HTTPStatus.TOO_MANY_REQUESTS else second

    def _token(self, account: ProviderAccount, http_client: HttpClient) -> str | Observation:
        return self._tokens.token(account, _PRODUCT, lambda: _fetch_token(account, http_client))


def _fetch_token(account: ProviderAccount, http_client: HttpClient) -> IssuedToken | Observation:
    """POST token/ without a body, with its length (no length: 411; a form: a firewall's page).

    The new platform needs the target environment here too; the old one ignores it.
    """
    names = (account.credentials["collection_api_user"], account.credentials["collection_api_key"])
    basic = base64.b64encode(":".join(names).encode()).decode()
    headers = {"Authorization": f"Basic {basic}", "Content-Length": "0"}
    call = _call("POST", account, "token/", operation="token", headers=headers)
    answer = http_client.send(replace(call, timeout_s=_TOKEN_TIMEOUT_S, creates_nothing=True))
    if isinstance(answer, NoResponse):
        why = f"token_{answer.why}"
        return Observation(Verdict.NOT_SENT, why, elapsed_s=answer.elapsed_s)
    return mtn_answers.token_issued(answer)


def _call(
    method: str,
    account: ProviderAccount,
    path: str,
    *,
    operation: str,
    headers: Mapping[str, str] = _NO_HEADERS,
    body: bytes | None = None,
) -> HttpRequest:
    """A request to the product's root; a double slash in the address would give a 400."""
    return HttpRequest(
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


def _under(token: str, call: HttpRequest) -> HttpRequest:
    return replace(call, headers={**call.headers, "Authorization": f"Bearer {token}"})


def _payment(order: PaymentOrder) -> dict[str, object]:
    """The body of requesttopay.

    A whole amount has no decimals: MTN doesn't publish whether markets with cents accept them, and
    an amount without is accepted everywhere.
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
