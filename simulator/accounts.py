"""API users, subscription keys and access tokens: who may call which product (1.3 to 1.5)."""

import base64
import json
import secrets
from dataclasses import dataclass

from simulator.database import Database

PRODUCTS = ("collection", "disbursement", "remittance")
ANY_HOST = "*"
ANY_PRODUCT = "*"


@dataclass(frozen=True, slots=True)
class Account:
    """An API user; it has no key until one is made."""

    api_user: str
    api_key: str | None
    callback_host: str


@dataclass(frozen=True, slots=True)
class Seed:
    """An account that exists from the start."""

    product: str
    subscription_key: str
    api_user: str
    api_key: str


class Accounts:
    """The accounts in the store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def seed(self, seed: Seed, *, callback_host: str) -> None:
        """Make the account, or give it the seed's key and host when it exists."""
        self.allow(seed.subscription_key, seed.product)
        self._database.insert(
            "INSERT INTO accounts VALUES (?, ?, ?) ON CONFLICT (api_user) DO UPDATE SET"
            " api_key = excluded.api_key, callback_host = excluded.callback_host",
            (seed.api_user, seed.api_key, callback_host),
        )

    def allow(self, key: str, product: str) -> None:
        """Make a subscription key valid for a product."""
        self._database.insert("INSERT OR IGNORE INTO subscriptions VALUES (?, ?)", (key, product))

    def is_subscribed(self, key: str, product: str) -> bool:
        """Whether the key is valid for this product."""
        found = self._database.row(
            "SELECT 1 FROM subscriptions WHERE key = ? AND product IN (?, ?)",
            (key, product, ANY_PRODUCT),
        )
        return found is not None

    def create(self, api_user: str, callback_host: str) -> bool:
        """Make an API user; False when the id is taken."""
        return (
            self._database.change(
                "INSERT OR IGNORE INTO accounts VALUES (?, NULL, ?)", (api_user, callback_host)
            )
            == 1
        )

    def find(self, api_user: str) -> Account | None:
        """Find the API user with this id."""
        row = self._database.row("SELECT * FROM accounts WHERE api_user = ?", (api_user,))
        return Account(*row) if row else None

    def issue_key(self, api_user: str) -> str:
        """Make a new API key; the previous one is void."""
        key = secrets.token_hex(16)
        self._database.change("UPDATE accounts SET api_key = ? WHERE api_user = ?", (key, api_user))
        return key

    def issue_token(self, account: Account, product: str, expires_at: float) -> str:
        """Make an access token in MTN's form: a JWT whose signature cannot be verified."""
        token = ".".join(
            _base64url(part)
            for part in (
                b'{"typ":"JWT","alg":"R256"}',
                json.dumps(
                    {
                        "clientId": account.api_user,
                        "expires": expires_at,
                        "sessionId": secrets.token_hex(16),
                    }
                ).encode(),
                secrets.token_bytes(32),
            )
        )
        self._database.insert(
            "INSERT INTO tokens VALUES (?, ?, ?, ?)", (token, product, account.api_user, expires_at)
        )
        return token

    def bearer(self, token: str, product: str, now: float) -> Account | None:
        """Find the token's account, if the token is valid for this product."""
        row = self._database.row(
            "SELECT a.api_user, a.api_key, a.callback_host FROM tokens t"
            " JOIN accounts a USING (api_user)"
            " WHERE t.token = ? AND t.product = ? AND t.expires_at > ?",
            (token, product, now),
        )
        return Account(*row) if row else None

    def expire_tokens(self) -> int:
        """Make every token void; returns how many there were."""
        return self._database.change("DELETE FROM tokens")


def _base64url(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()
