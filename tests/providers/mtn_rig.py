"""MTN MoMo's rig: the simulator as a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Self
from urllib.request import Request, urlopen
from uuid import UUID, uuid4

from payments_app.kernel.money import Money
from payments_app.kernel.msisdn import Msisdn
from payments_app.providers.contract import Mode, PaymentOrder, ProviderAccount, Verdict
from tests.providers.rig import PATIENCE_S, Trouble

SUBSCRIPTION_KEY = "key-1"
API_USER = "5f1c2a34-0d5e-4a7b-9c11-2b3c4d5e6f70"
API_KEY = "0123456789abcdef0123456789abcdef"
# Longer than PATIENCE_S.
TOO_LONG_S = 0.8


def fault(
    kind: str,
    operation: str,
    verdict: Verdict | None,
    *,
    times: int = 1,
    **parameters: object,
) -> Trouble:
    recipe = {"kind": kind, "operation": operation, "times": times, "parameters": parameters}
    lasts_s = float(str(parameters.get("delay_s", 0)))
    outlasts_us = lasts_s > PATIENCE_S or kind == "connection_drip"
    return Trouble(recipe, verdict, outlasts_us, lasts_s, of_token=operation == "token")


# Without a token no request is sent; a status check then proves nothing new.
def token_troubles(verdict: Verdict) -> dict[str, Trouble]:
    return {
        "token login_failed": fault("token_500", "token", verdict),
        "token invalid_client": fault("token_401", "token", verdict),
        "token firewall": fault("token_html_200", "token", verdict),
        "token forbidden": fault("html_403", "token", verdict),
        "token throttled": fault("too_many_429", "token", verdict, retry_after=1),
        "token unavailable": fault("unavailable_503", "token", verdict),
        "token empty": fault("empty_200", "token", verdict),
        "token reset": fault("reset_before", "token", verdict),
        "token garbage": fault("garbage", "token", verdict, form="bytes"),
        "token cut": fault("garbage", "token", verdict, form="cut"),
        "token half": fault("garbage", "token", verdict, form="json"),
        "token drips": fault("connection_drip", "token", verdict),
        "token too slow": fault("token_slow", "token", verdict, delay_s=TOO_LONG_S),
    }


UNKNOWN, REFUSED = Verdict.UNKNOWN, Verdict.REFUSED


class MtnRig:
    """Payments wait until the admin API approves or rejects them."""

    SUBMISSION_TROUBLES: ClassVar[Mapping[str, Trouble]] = {
        "bad request": fault("refuse_400", "create", REFUSED),
        "not allowed": fault("refuse_500_code", "create", REFUSED, code="NOT_ALLOWED"),
        "no such payer": fault("refuse_500_code", "create", REFUSED, code="PAYER_NOT_FOUND"),
        "wrong currency": fault("refuse_500_code", "create", REFUSED, code="INVALID_CURRENCY"),
        "a 500 that rejects": fault("refuse_500_code", "create", UNKNOWN, code="EXPIRED"),
        "internal error": fault("internal_error", "create", UNKNOWN),
        "reset before": fault("reset_before", "create", UNKNOWN, how="reset"),
        "closed before": fault("reset_before", "create", UNKNOWN, how="close"),
        "late arrival": fault("hang", "create", UNKNOWN, delay_s=TOO_LONG_S),
        "firewall": fault("waf_html_200", "create", REFUSED),
        "forbidden": fault("html_403", "create", REFUSED),
        "one 401": fault("unauthorized_401", "create", None),
        "two 401": fault("unauthorized_401", "create", UNKNOWN, times=2),
        "throttled": fault("too_many_429", "create", Verdict.NOT_SENT, retry_after=3),
        "out of quota": fault("quota_403", "create", Verdict.NOT_SENT),
        "compressed": fault("gzip", "create", None),
        "many headers": fault("many_headers", "create", None),
        "a token without its life": fault("token_without_life", "token", None),
        "unavailable": fault("unavailable_503", "create", UNKNOWN),
        "no such address": fault("no_route_404", "create", UNKNOWN),
        # The adapter sends again under a new token, and the answer says that the reference exists.
        "accepted, then 401": fault("accept_then_401", "create", Verdict.DUPLICATE),
        "accepted, then 404": fault("accept_then_404", "create", UNKNOWN),
        "accepted, then 409": fault("accept_then_409", "create", Verdict.DUPLICATE),
        "accepted, then 429": fault("accept_then_429", "create", Verdict.NOT_SENT, retry_after=1),
        "accepted, then a bare 500": fault("accept_then_500", "create", UNKNOWN, form="bare"),
        "accepted, then 500": fault("accept_then_500", "create", UNKNOWN),
        "accepted, then 503": fault("accept_then_503", "create", UNKNOWN),
        "accepted, then reset": fault("accept_then_reset", "create", UNKNOWN, how="reset"),
        "accepted, then closed": fault("accept_then_reset", "create", UNKNOWN, how="close"),
        "accepted, then nothing": fault("accept_then_hang", "create", UNKNOWN, delay_s=TOO_LONG_S),
        "slow": fault("slow", "create", None, delay_s=0.1),
        "noise": fault("garbage", "create", UNKNOWN, form="bytes"),
        "half a json": fault("garbage", "create", UNKNOWN, form="json"),
        "cut": fault("garbage", "create", UNKNOWN, form="cut"),
        "empty 200": fault("empty_200", "create", UNKNOWN),
        "drips": fault("connection_drip", "create", UNKNOWN),
        "not visible yet": fault("invisible", "create", None, delay_s=0.2),
        **token_troubles(Verdict.NOT_SENT),
    }
    CHECK_TROUBLES: ClassVar[Mapping[str, Trouble]] = {
        "bad request": fault("refuse_400", "status", UNKNOWN),
        "not allowed": fault("refuse_500_code", "status", UNKNOWN, code="NOT_ALLOWED"),
        "internal error": fault("internal_error", "status", UNKNOWN),
        "reset": fault("reset_before", "status", UNKNOWN),
        "hangs": fault("hang", "status", UNKNOWN, delay_s=TOO_LONG_S),
        "firewall": fault("waf_html_200", "status", UNKNOWN),
        "forbidden": fault("html_403", "status", UNKNOWN),
        "one 401": fault("unauthorized_401", "status", None),
        "two 401": fault("unauthorized_401", "status", UNKNOWN, times=2),
        "throttled": fault("too_many_429", "status", UNKNOWN, retry_after=3),
        "out of quota": fault("quota_403", "status", UNKNOWN),
        "compressed": fault("gzip", "status", None),
        "many headers": fault("many_headers", "status", None),
        "an amount as a number": fault("amount_number", "status", None),
        "a token without its life": fault("token_without_life", "token", None),
        "unavailable": fault("unavailable_503", "status", UNKNOWN),
        "not found": fault("status_404", "status", Verdict.NOT_FOUND),
        "slow": fault("slow", "status", None, delay_s=0.1),
        "noise": fault("garbage", "status", UNKNOWN, form="bytes"),
        "half a json": fault("garbage", "status", UNKNOWN, form="json"),
        "cut": fault("garbage", "status", UNKNOWN, form="cut"),
        "empty": fault("empty_200", "status", UNKNOWN),
        "a new word": fault("unknown_status_word", "status", UNKNOWN, word="ONGOING"),
        "drips": fault("connection_drip", "status", UNKNOWN),
        "another amount": replace(
            fault("status_wrong_amount", "status", None, amount="1"), changes_amount=True
        ),
        **token_troubles(UNKNOWN),
    }

    def __enter__(self) -> Self:
        account = f"collection:{SUBSCRIPTION_KEY}:{API_USER}:{API_KEY}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simulator", "--port", "0", "--seed-account", account],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        found = re.search(r"http://\S+", self._process.stdout.readline())
        assert found is not None
        self._url = found[0]
        self.calm()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=10)

    def account(self) -> ProviderAccount:
        return ProviderAccount(
            id=None,
            provider="mtn_momo",
            mode=Mode.TEST,
            base_url=self._url,
            target_environment="mtnuganda",
            credentials={
                "collection_subscription_key": SUBSCRIPTION_KEY,
                "collection_api_user": API_USER,
                "collection_api_key": API_KEY,
            },
        )

    def wrong_account(self) -> ProviderAccount:
        account = self.account()
        return replace(account, credentials={**account.credentials, "collection_api_key": "no"})

    def order(self) -> PaymentOrder:
        return PaymentOrder(uuid4(), uuid4(), Money(1000, "UGX"), Msisdn("256772123456"))

    def cause(self, trouble: Trouble) -> None:
        self._admin("POST", "faults", trouble.recipe)

    def calm(self) -> None:
        self._admin("POST", "reset")
        self._admin("POST", "settings", {"approval_delay_s": None, "callback_mode": "none"})

    def delay_tokens(self, delay_s: float) -> None:
        self.cause(fault("token_slow", "token", None, delay_s=delay_s))

    def pay(self, reference: UUID) -> None:
        self._admin("POST", f"approve/{reference}")

    def fail(self, reference: UUID) -> None:
        self._admin("POST", f"reject/{reference}")

    def submissions(self, reference: UUID) -> int:
        rows = self._rows("requests", reference)
        return sum(row["operation"] == "create" for row in rows)

    def payments(self, reference: UUID) -> int:
        return len(self._rows("payments", reference))

    def movements(self, reference: UUID) -> int:
        return len(self._rows("ledger", reference))

    def _rows(self, view: str, reference: UUID) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = self._admin("GET", f"{view}?reference={reference}")["data"]
        return rows

    def _admin(
        self, method: str, path: str, document: Mapping[str, object] | None = None
    ) -> dict[str, list[dict[str, object]]]:
        body = None if document is None else json.dumps(document).encode()
        # The address is that of our own child process.
        request = Request(f"{self._url}/_admin/{path}", body, method=method)  # noqa: S310
        with urlopen(request, timeout=10) as answer:  # noqa: S310
            found: dict[str, list[dict[str, object]]] = json.loads(answer.read() or b"{}")
            return found
