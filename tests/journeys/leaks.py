"""Searches for what must never be seen: whole phone numbers, keys, credentials and tokens."""

from __future__ import annotations

import base64
import sqlite3
from pathlib import Path

from devstack.environment import SimulatorAccount
from tests.journeys.gateway import Gateway


def secrets_of(gateway: Gateway) -> dict[str, str]:
    """Each secret of this stack so far, by a name that a message may show."""
    account, stack = SimulatorAccount(), gateway.stack
    basic = base64.b64encode(f"{account.api_user}:{account.api_key}".encode()).decode()
    return {
        "the tenant's API key": gateway.api_key,
        "the secret half of the API key": gateway.api_key.rpartition("_")[2],
        "the encryption key": stack.environment["SECRET_KEYS"],
        "MTN's subscription key": account.subscription_key,
        "MTN's API key": account.api_key,
        "MTN's credentials as sent": basic,
        **{f"the payer ending in {payer[-3:]}": payer for payer in gateway.payers},
        **gateway.secrets,
        **{f"access token {n}": token for n, token in enumerate(_tokens(gateway), start=1)},
    }


def found_in(text: str, secrets: dict[str, str]) -> list[str]:
    """The names of the secrets that are in the text."""
    return [name for name, secret in secrets.items() if secret in text]


def leaks_in_logs(gateway: Gateway) -> list[str]:
    """Which log contains which secret."""
    secrets = secrets_of(gateway)
    return [
        f"{path.name}: {name}"
        for path in logs_of(gateway)
        for name in found_in(path.read_text(encoding="utf-8", errors="replace"), secrets)
    ]


def logs_of(gateway: Gateway) -> list[Path]:
    """The logs of all processes, with those of the servers."""
    stack = gateway.stack
    processes = [*stack.processes.values(), stack.postgres.process, stack.redis.process]
    return [process.log_path for process in processes]


def _tokens(gateway: Gateway) -> list[str]:
    """Every access token that the simulator has issued."""
    store = gateway.stack._directory / "simulator.db"
    with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT token FROM tokens").fetchall()
    database.close()
    return [str(token) for (token,) in rows]
