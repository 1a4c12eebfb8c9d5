"""The settings that a stack's processes start with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.fernet import Fernet

# What a process needs of our environment; a developer's own settings must not reach a test.
_SURROUNDINGS = (
    "COVERAGE_PROCESS_START",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "TMPDIR",
    "TZ",
    "USER",
)


@dataclass(frozen=True)
class SimulatorAccount:
    """The account that the provider simulator is seeded with; it is valid nowhere else."""

    subscription_key: str = "0f0d3c4b5a6978695a4b3c2d1e0f0a1b"
    api_user: str = "7d9f0b52-5e0c-4c4f-9a70-52f2c7a9e0d1"
    api_key: str = "b1946ac92492d2347c6235b4d2611184"

    def seed(self) -> str:
        """The simulator's argument for this account."""
        return f"collection:{self.subscription_key}:{self.api_user}:{self.api_key}"

    def settings(self, base_url: str) -> dict[str, str]:
        """The gateway's settings for this account."""
        return {
            "MTN_BASE_URL": base_url,
            "MTN_TARGET_ENVIRONMENT": "sandbox",
            "MTN_COLLECTION_SUBSCRIPTION_KEY": self.subscription_key,
            "MTN_COLLECTION_API_USER": self.api_user,
            "MTN_COLLECTION_API_KEY": self.api_key,
        }


@dataclass(frozen=True)
class Addresses:
    """The addresses of the databases."""

    database_url: str
    migration_database_url: str
    redis_url: str

    def settings(self) -> dict[str, str]:
        """The gateway's settings for these addresses."""
        return {
            "DATABASE_URL": self.database_url,
            "MIGRATION_DATABASE_URL": self.migration_database_url,
            "REDIS_URL": self.redis_url,
        }


def surroundings() -> dict[str, str]:
    """The part of our environment that every child process needs, without settings of the gateway."""
    return {name: os.environ[name] for name in _SURROUNDINGS if name in os.environ}


def hermetic_environment(addresses: Addresses, settings: Mapping[str, str]) -> dict[str, str]:
    """A complete environment, independent of the machine's; `settings` take precedence."""
    return {
        **surroundings(),
        **addresses.settings(),
        "SECRET_KEYS": new_secret_key(),
        "LOG_LEVEL": "INFO",
        "LOG_FORMAT": "json",
        **settings,
    }


def new_secret_key() -> str:
    """A key for SECRET_KEYS."""
    return Fernet.generate_key().decode("ascii")
