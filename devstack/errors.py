"""Errors of the stack: one line that says what happened, and one that says what to do."""

from __future__ import annotations


class StackError(Exception):
    """An error that is shown as two lines, the error and the remedy, without a stack trace."""

    def __init__(self, what: str, *, remedy: str) -> None:
        """Keep the error and its remedy."""
        super().__init__(f"{what}\n  → {remedy}")
        self.what = what
        self.remedy = remedy
