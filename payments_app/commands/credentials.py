"""Reads credentials from a terminal, a pipe or the environment, where they leave no trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from payments_app.tenants.errors import ProviderAccountInvalid

_ENVIRONMENT = "env:"


def read_credentials(given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Each `given` is NAME, NAME=- or NAME=env:VARIABLE; a terminal prompts for the other `names`.

    A pipe gives one value per line, in the order given. Raises ProviderAccountInvalid.
    """
    credentials: dict[str, str] = {}
    for option in given:
        name, _, source = option.partition("=")
        credentials[name] = _read(name, source or "-")
    if sys.stdin.isatty():
        credentials |= {name: _asked(name) for name in names if name not in credentials}
    return credentials


def _read(name: str, source: str) -> str:
    if source.startswith(_ENVIRONMENT):
        return os.environ.get(source.removeprefix(_ENVIRONMENT), "").strip()
    if source != "-":
        # The message leaves the value out: it is likely to be the secret itself.
        raise ProviderAccountInvalid(
            f"The credential {name} may not stand on the command line: give {name}=- or"
            f" {name}=env:VARIABLE."
        )
    return _asked(name) if sys.stdin.isatty() else sys.stdin.readline().strip()


def _asked(name: str) -> str:
    value: str = click.prompt(name, hide_input=True, err=True)
    return value.strip()
