"""A phone number, as an operator types it."""

from __future__ import annotations

from typing import Any

import click

from payments_app.kernel.msisdn import Msisdn


class Number(click.ParamType[Msisdn]):
    """A phone number that error messages don't repeat."""

    name = "msisdn"

    def convert(self, value: Any, param: Any, ctx: Any) -> Msisdn:
        """Read one number, in international form."""
        try:
            return Msisdn.parse(value)
        except ValueError as error:
            self.fail(f"the number {error}.", param, ctx)
