"""The checks of a provider account before it is stored, the same for every provider. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from payments_app.providers.contract import Mode
from payments_app.tenants.errors import ProviderAccountInvalid

# The only target environment, at every provider, in which no real money moves.
SANDBOX: Final = "sandbox"
_WORD: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check_form(
    mode: Mode, base_url: str, target_environment: str, credentials: Mapping[str, str]
) -> None:
    """Raises ProviderAccountInvalid with a sentence that says what is wrong."""
    if not _is_base_url(base_url):
        raise ProviderAccountInvalid("The base URL must be such as https://api.example.com.")
    if _WORD.fullmatch(target_environment) is None:
        raise ProviderAccountInvalid("The target environment must be one word.")
    if mode is Mode.TEST and target_environment != SANDBOX:
        raise ProviderAccountInvalid("Test keys reach no real money: only a sandbox is for them.")
    if mode is Mode.LIVE and target_environment == SANDBOX:
        raise ProviderAccountInvalid("Live keys are for real money: a sandbox is for test keys.")
    for name, value in credentials.items():
        if not value or not value.isprintable() or value != value.strip():
            raise ProviderAccountInvalid(f"The credential {name} is empty or holds odd characters.")


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    plain = text.isprintable() and " " not in text and not (parts.query or parts.username)
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)
