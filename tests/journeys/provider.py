"""The simulator as a test uses it: which faults to apply, and what its ledger says happened."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import requests

ANSWER_MAX_S = 15.0
PAGE = 10_000

Row = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """All that the provider knows of one reference."""

    creations: list[Row]
    movements: list[Row]
    requests: list[Row]

    @property
    def status(self) -> str | None:
        """The payment's status there; None if the provider never accepted it."""
        return str(self.creations[0]["status"]) if self.creations else None

    def asked(self, operation: str) -> list[Row]:
        """The calls of one kind, oldest first."""
        return [row for row in self.requests if row["operation"] == operation]


class Provider:
    """The admin API of the running simulator."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/_admin"

    def truth(self, reference: str) -> Truth:
        """All that the provider knows of one reference."""
        found = [list(self.rows(view, reference=reference)) for view in _EVIDENCE]
        return Truth(*found)

    def rows(self, view: str, **query: str) -> Iterator[Row]:
        """All rows of a view, oldest first."""
        cursor: str | None = "0"
        while cursor is not None:
            page = self._get(view, {**query, "cursor": cursor, "limit": str(PAGE)})
            yield from page["data"]
            cursor = page["next_cursor"]

    def summary(self) -> Row:
        """The simulator's counts over everything."""
        return self._get("summary", {})

    def fault(self, kind: str, *, times: int | None = 1, **fields: Any) -> None:
        """Set a fault; `match` limits it to one payer, so that tests don't affect each other."""
        self._post("faults", {"kind": kind, "times": times, **fields})

    def strikes(self, kind: str) -> int:
        """How often faults of this kind have been applied since the last reset."""
        faults = self._get("faults", {})["data"]
        return sum(fault["applied"] for fault in faults if fault["kind"] == kind)

    def settings(self, **changed: Any) -> None:
        """Change settings until the next reset."""
        self._post("settings", changed)

    def advance_clock(self, seconds: float) -> None:
        """Move the clock forward; what is due by then happens before this returns."""
        self._post("clock", {"advance_s": seconds})

    def approve(self, reference: str) -> None:
        """The payer approves."""
        self._post(f"approve/{reference}", {})

    def reject(self, reference: str) -> None:
        """The payer rejects."""
        self._post(f"reject/{reference}", {})

    def expire_tokens(self) -> None:
        """Invalidate all tokens that were issued."""
        self._post("tokens/expire", {})

    def reset(self) -> None:
        """Clear faults and settings; the records stay."""
        self._post("reset", {})

    def _get(self, path: str, query: dict[str, str]) -> Row:
        answer = requests.get(f"{self._url}/{path}", params=query, timeout=ANSWER_MAX_S)
        answer.raise_for_status()
        found: Row = answer.json()
        return found

    def _post(self, path: str, document: Row) -> None:
        answer = requests.post(f"{self._url}/{path}", json=document, timeout=ANSWER_MAX_S)
        assert answer.ok, answer.text


_EVIDENCE = ("payments", "ledger", "requests")
