"""For the tests of the token cache: an account, and a token source that counts its calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import cast
from uuid import UUID

from cryptography.fernet import Fernet
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from payments_app.kernel.secrets import Cipher
from payments_app.providers.contract import (
    Failure,
    FailureCode,
    Mode,
    Observation,
    ProviderAccount,
    Verdict,
)
from payments_app.providers.tokens import IssuedToken, TokenCache

SECRET_KEY = Fernet.generate_key().decode()
REFUSED = Observation(
    Verdict.NOT_SENT,
    "token_refused",
    failure=Failure(FailureCode.PROVIDER_MISCONFIGURED, "login_failed"),
)
ACCOUNT = ProviderAccount(
    id=UUID("0199c0de-0000-7000-8000-00000000000a"),
    provider="mtn_momo",
    mode=Mode.TEST,
    base_url="https://mtn.test",
    target_environment="sandbox",
    credentials={"collection_api_user": "the-user", "collection_api_key": "the-key"},
    version="1",
)


class CountingMint:
    """Issues `name-1`, `name-2` … or returns `answer`, after `takes_s`."""

    def __init__(
        self,
        name: str = "token",
        *,
        lives_s: float = 3600,
        answer: Observation | None = None,
        takes_s: float = 0.0,
    ) -> None:
        self.name = name
        self.lives_s = lives_s
        self.answer = answer
        self.takes_s = takes_s
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self) -> IssuedToken | Observation:
        with self._lock:
            self.calls += 1
            number = self.calls
        time.sleep(self.takes_s)
        return self.answer or IssuedToken(f"{self.name}-{number}", self.lives_s)


def a_client(url: str, *, timeout_s: float = 5.0) -> Redis:
    return Redis.from_url(
        url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
    )


def keys(redis: Redis, pattern: str) -> list[bytes]:
    return cast("list[bytes]", redis.keys(pattern))


def away() -> TokenCache:
    return TokenCache(a_client("redis://127.0.0.1:1/0"), Cipher([SECRET_KEY]))


Process = Callable[[], TokenCache]


def the_turn(redis: Redis) -> bytes:
    """The name of the lock for fetching a token, which one failure leaves in Redis."""
    cache = TokenCache(redis, Cipher([SECRET_KEY]))
    cache.token(ACCOUNT, "collection", CountingMint(answer=REFUSED))
    (name,) = keys(redis, "*:turn")
    return name
