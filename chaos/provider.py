"""The simulator's admin API: weather in, evidence out."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import requests

from chaos.weather import ProviderFault, Weather, fault_name

ADMIN_TIMEOUT_S: Final = 10.0
PAGE: Final = 5_000
# The simulator's log of requests does not show these two; it counts them at the fault itself.
COUNTED_AT_THE_FAULT: Final = ("invisible", "callback")
_RETRY_S: Final = 0.2

Row = Mapping[str, Any]


class ProviderAdmin:
    """The admin API of one simulator. Any thread may use it."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/_admin"

    def configure(self, weather: Weather) -> None:
        """Its settings and background faults; a restart forgets both."""
        self._post("settings", dict(weather.settings))
        for fault in weather.background:
            self.add(fault)

    def add(self, fault: ProviderFault) -> None:
        """Set one fault."""
        self._post("faults", fault.document())

    def void_tokens(self) -> None:
        """End every token now."""
        self._post("tokens/expire", {})

    def faults(self) -> list[Row]:
        """Those that are set, with how often each has struck."""
        found: list[Row] = self._get("faults", {})["data"]
        return found

    def clear(self) -> None:
        """Take all faults away; settings stay."""
        requests.delete(f"{self._url}/faults", timeout=ADMIN_TIMEOUT_S).raise_for_status()

    def rows(self, view: str) -> Iterator[Row]:
        """All rows of ledger, payments, requests or callbacks, oldest first."""
        cursor: int | None = 0
        while cursor is not None:
            page = self._get(view, {"limit": PAGE, "cursor": cursor})
            yield from page["data"]
            cursor = page["next_cursor"]

    def _post(self, path: str, document: object) -> None:
        answer = requests.post(f"{self._url}/{path}", json=document, timeout=ADMIN_TIMEOUT_S)
        answer.raise_for_status()

    def _get(self, path: str, query: Mapping[str, int]) -> dict[str, Any]:
        answer = requests.get(f"{self._url}/{path}", params=query, timeout=ADMIN_TIMEOUT_S)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


class Storm:
    """Brings the weather: the background at once, each strike at its moment."""

    def __init__(self, admin: ProviderAdmin, weather: Weather) -> None:
        self._admin = admin
        self._weather = weather
        self._over = threading.Event()
        # Held while the provider is away: what is set in it meanwhile would be forgotten.
        self.provider_is_there = threading.Lock()
        self._counted: Counter[str] = Counter()
        self._pending: list[ProviderFault] = []
        self._thread = threading.Thread(target=self._strike_in_turn, name="storm", daemon=True)

    def begin(self) -> None:
        """Set the background, and start the clock of the strikes."""
        self._admin.configure(self._weather)
        self._thread.start()

    def end(self) -> None:
        """Take all faults away."""
        self._over.set()
        self._thread.join()
        with self.provider_is_there:
            self._count()
            self._admin.clear()

    def is_spent(self) -> bool:
        """Whether every strike has found a call to strike."""
        if self._thread.is_alive():
            return False
        try:
            with self.provider_is_there:
                return not any(row["left"] for row in self._admin.faults())
        except requests.RequestException:
            return False

    def before_restart(self) -> None:
        """Count what has struck, and keep what has not: a restart forgets both."""
        self._count()
        unspent = [row for row in self._admin.faults() if row["left"] and not row["applied"]]
        self._pending += [
            ProviderFault(row["operation"], row["kind"], row["parameters"], at_s=0.0)
            for row in unspent
        ]

    def after_restart(self) -> None:
        """Set again what was forgotten."""
        self._admin.configure(self._weather)
        for fault in self._pending:
            self.strike(fault)
        self._pending.clear()

    def hits(self, requests_seen: Iterator[Row]) -> Counter[str]:
        """How often each kind has struck, from the provider's log of requests where it shows."""
        found = Counter(self._counted)
        for row in requests_seen:
            for kind in (row["fault"] or "").split("+"):
                if kind:
                    found[fault_name(row["operation"], kind, {})] += 1
        return found

    def strike(self, fault: ProviderFault) -> None:
        """Set a fault that strikes once; a token's also ends the tokens, or it would wait long."""
        self._admin.add(fault)
        if fault.operation == "token":
            self._admin.void_tokens()

    def _strike_in_turn(self) -> None:
        started = time.monotonic()
        for fault in self._weather.strikes:
            if self._over.wait(max(0.0, (fault.at_s or 0.0) - (time.monotonic() - started))):
                return
            self._strike_when_there(fault)

    def _strike_when_there(self, fault: ProviderFault) -> None:
        while not self._over.is_set():
            try:
                with self.provider_is_there:
                    self.strike(fault)
            except requests.RequestException:
                # It is frozen: later.
                self._over.wait(_RETRY_S)
            else:
                return

    def _count(self) -> None:
        for row in self._admin.faults():
            if row["kind"] in COUNTED_AT_THE_FAULT:
                name = fault_name(row["operation"], row["kind"], row["parameters"])
                self._counted[name] += row["applied"]
