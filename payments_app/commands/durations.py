"""A duration, as an operator types it: 30d, 24h, 15m."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Final

import click

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}
_FORM: Final = re.compile(r"([0-9]{1,5})([dhm])")


class Duration(click.ParamType[timedelta]):
    """A whole number of days, hours or minutes."""

    name = "duration"

    def __init__(self, *, least: timedelta = timedelta(0)) -> None:
        """`least`: the shortest duration that is accepted."""
        self._least = least

    def convert(self, value: Any, param: Any, ctx: Any) -> timedelta:
        """Read `30d`, `24h` or `15m`."""
        if isinstance(value, timedelta):
            return value
        found = _FORM.fullmatch(value)
        if found is None:
            self.fail("say a number of days, hours or minutes, such as 30d, 24h or 15m", param, ctx)
        duration = timedelta(**{_UNITS[found[2]]: int(found[1])})
        if duration < self._least:
            self.fail("that is too short: it would be over at once", param, ctx)
        return duration
