"""A tenant with its own account at the provider, and thus its own credentials."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from uuid import uuid4

import requests

from devstack.programs import Programs
from tests.journeys.gateway import ANSWER_MAX_S, Gateway

NAMES = ("collection_subscription_key", "collection_api_user", "collection_api_key")


@dataclass(frozen=True)
class OwnAccount:
    """The credentials that the provider's portal gave the tenant."""

    subscription_key: str
    api_user: str
    api_key: str

    @property
    def secrets(self) -> dict[str, str]:
        """The secrets, by names that a message may show. The API user's id is not a secret."""
        basic = base64.b64encode(f"{self.api_user}:{self.api_key}".encode()).decode()
        return {
            f"the tenant's own {what} ending in {secret[-3:]}": secret
            for what, secret in (
                ("subscription key", self.subscription_key),
                ("API key", self.api_key),
                ("credentials as sent", basic),
            )
        }


def opened_at(simulator_url: str) -> OwnAccount:
    """A new account at the simulator."""
    key, user = secrets.token_hex(16), str(uuid4())
    headers = {"Ocp-Apim-Subscription-Key": key, "X-Reference-Id": user}
    url = f"{simulator_url}/v1_0/apiuser"
    host = {"providerCallbackHost": "127.0.0.1"}
    made = requests.post(url, json=host, headers=headers, timeout=ANSWER_MAX_S)
    assert made.status_code == 201, made.text
    given = requests.post(f"{url}/{user}/apikey", headers=headers, timeout=ANSWER_MAX_S)
    return OwnAccount(key, user, given.json()["apiKey"])


def give(
    gateway: Gateway, tenant: str, account: OwnAccount, *, environment: str = "sandbox"
) -> None:
    """Let the tenant's payments use the account; its secrets are searched for from now on."""
    values = (account.subscription_key, account.api_user, account.api_key)
    variables = {name.upper(): value for name, value in zip(NAMES, values, strict=True)}
    Programs({**gateway.stack.environment, **variables}).flask(
        *("providers", "set", tenant, "mtn_momo", "--target-environment", environment),
        *("--base-url", gateway.stack.simulator_url),
        *(word for name in NAMES for word in ("--credential", f"{name}=env:{name.upper()}")),
    )
    gateway.secrets |= account.secrets
