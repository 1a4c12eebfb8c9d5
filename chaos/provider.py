"""The simulator's admin API: weather in, evidence out."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import requests

from chaos.provider_faults import OF_TOKENS, ProviderFault, ProviderFaultPlan, fault_name

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

    def configure(self, weather: ProviderFaultPlan, first: Sequence[ProviderFault] = ()) -> None:
        """Its settings and background faults, after those of `first`; a restart forgets both.

        The faults in one request: what waits for a provider that comes back is there at once.
        """
        self.add(*first, *weather.background)
        self._post("settings", dict(weather.settings))

    def add(self, *faults: ProviderFault) -> None:
        """Set faults, in this order."""
        self._post("faults", {"faults": [fault.document() for fault in faults]})

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

    def __init__(
        self,
        admin: ProviderAdmin,
        weather: ProviderFaultPlan,
        scripted: Sequence[ProviderFault] = (),
    ) -> None:
        """`scripted`: faults for single payments. They come before the others."""
        self._admin = admin
        self._weather = weather
        self._scripted = scripted
        self._over = threading.Event()
        # Held while the provider is away: what is set in it meanwhile would be forgotten.
        self.provider_is_there = threading.Lock()
        self._counted: Counter[str] = Counter()
        self._pending: list[ProviderFault] = []
        # Those of tokens apart, for they wait for each other.
        self._threads = [
            threading.Thread(target=self._strike_in_turn, args=[strikes], name="storm", daemon=True)
            for strikes in (
                [one for one in weather.strikes if one.operation != OF_TOKENS],
                [one for one in weather.strikes if one.operation == OF_TOKENS],
            )
        ]

    def begin(self) -> None:
        """Set what single payments meet and the background; start the clock of the strikes."""
        self._admin.configure(self._weather, self._scripted)
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Take all faults away."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        with self.provider_is_there:
            self._count()
            self._admin.clear()

    def is_spent(self) -> bool:
        """Whether every strike has found a call to strike."""
        if any(thread.is_alive() for thread in self._threads):
            return False
        try:
            with self.provider_is_there:
                faults = self._admin.faults()
                # Those of single payments wait for clients who may have no time for them.
                return not any(row["left"] for row in faults if not row["match"])
        except requests.RequestException:
            return False

    def before_restart(self) -> None:
        """Count what has struck, and keep what has not: a restart forgets both."""
        self._count()
        unspent = [row for row in self._admin.faults() if row["left"] and not row["applied"]]
        self._pending += [
            ProviderFault(
                *(row["operation"], row["kind"], row["parameters"]),
                at_s=0.0,
                match=row["match"],
                nth=row["nth"],
            )
            for row in unspent
        ]

    def after_restart(self) -> None:
        """Set again what was forgotten, in its order."""
        self._admin.configure(self._weather, sorted(self._pending, key=lambda one: not one.match))
        if any(fault.operation == OF_TOKENS for fault in self._pending):
            self._admin.void_tokens()
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
        if fault.operation == OF_TOKENS:
            self._admin.void_tokens()

    def _strike_in_turn(self, strikes: Sequence[ProviderFault]) -> None:
        started = time.monotonic()
        for fault in strikes:
            if self._over.wait(max(0.0, (fault.at_s or 0.0) - (time.monotonic() - started))):
                return
            self._strike_when_there(fault)

    def _strike_when_there(self, fault: ProviderFault) -> None:
        while not self._over.is_set():
            try:
                with self.provider_is_there:
                    if fault.operation != OF_TOKENS or not self._tokens_are_struck():
                        self.strike(fault)
                        return
            except requests.RequestException:
                # It is frozen: later.
                pass
            self._over.wait(_RETRY_S)

    def _tokens_are_struck(self) -> bool:
        """Whether a fault of a token waits for its call.

        While all workers are frozen they would pile up, and be an outage of minutes afterwards.
        """
        return any(row["operation"] == OF_TOKENS and row["left"] for row in self._admin.faults())

    def _count(self) -> None:
        for row in self._admin.faults():
            if row["kind"] in COUNTED_AT_THE_FAULT:
                name = fault_name(row["operation"], row["kind"], row["parameters"])
                self._counted[name] += row["applied"]
