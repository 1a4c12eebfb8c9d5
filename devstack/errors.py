"""What can go wrong around the stack, said in one line with what to do about it."""

from __future__ import annotations


class StackError(Exception):
    """One line what happened, one line what to do; never a stack trace for the reader."""

    def __init__(self, what: str, *, remedy: str) -> None:
        """Keep both halves: the reader needs the second more than the first."""
        super().__init__(f"{what}\n  → {remedy}")
        self.what = what
        self.remedy = remedy
