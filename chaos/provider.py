"""The simulator's admin API: sets faults and settings, reads evidence."""

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
# The simulator's log of requests does not show these two kinds; the fault itself counts them.
COUNTED_AT_THE_FAULT: Final = ("invisible", "callback")
_RETRY_S: Final = 0.2

Row = Mapping[str, Any]


class ProviderAdmin:
    """The admin API of one simulator. Any thread may use it."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/_admin"

    def configure(self, weather: ProviderFaultPlan, first: Sequence[ProviderFault] = ()) -> None:
        """Set `first`, the background faults and the settings; a restart loses them all.

        All faults go in one request, so that a restarted provider has all of them at once.
        """
        self.add(*first, *weather.background)
        self._post("settings", dict(weather.settings))

    def add(self, *faults: ProviderFault) -> None:
        """Set faults, in this order."""
        self._post("faults", {"faults": [fault.document() for fault in faults]})

    def void_tokens(self) -> None:
        """Expire every token now."""
        self._post("tokens/expire", {})

    def faults(self) -> list[Row]:
        """The faults that are set, each with how often it was applied."""
        found: list[Row] = self._get("faults", {})["data"]
        return found

    def clear(self) -> None:
        """Remove all faults; settings stay."""
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
    """Sets the provider's faults: the background at once, each one-time fault at its time."""

    def __init__(
        self,
        admin: ProviderAdmin,
        weather: ProviderFaultPlan,
        scripted: Sequence[ProviderFault] = (),
    ) -> None:
        """`scripted`: faults for single payments. They take precedence over the others."""
        self._admin = admin
        self._weather = weather
        self._scripted = scripted
        self._over = threading.Event()
        # Held while the provider is restarted: faults set meanwhile would be lost.
        self.provider_is_there = threading.Lock()
        self._counted: Counter[str] = Counter()
        self._pending: list[ProviderFault] = []
        # Faults of tokens have a thread of their own, because each waits for the previous one.
        self._threads = [
            threading.Thread(target=self._strike_in_turn, args=[strikes], name="storm", daemon=True)
            for strikes in (
                [one for one in weather.strikes if one.operation != OF_TOKENS],
                [one for one in weather.strikes if one.operation == OF_TOKENS],
            )
        ]

    def begin(self) -> None:
        """Set the payments' own faults and the background; start the clock of the others."""
        self._admin.configure(self._weather, self._scripted)
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Remove all faults."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        with self.provider_is_there:
            self._count()
            self._admin.clear()

    def is_spent(self) -> bool:
        """Whether every one-time fault has been applied, except those for single payments."""
        if any(thread.is_alive() for thread in self._threads):
            return False
        try:
            with self.provider_is_there:
                faults = self._admin.faults()
                # Faults for single payments may wait for requests that clients do not get to send.
                return not any(row["left"] for row in faults if not row["match"])
        except requests.RequestException:
            return False

    def before_restart(self) -> None:
        """Count the applied faults, and keep those not applied yet: a restart loses both."""
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
        """Set the lost faults again, in their order."""
        self._admin.configure(self._weather, sorted(self._pending, key=lambda one: not one.match))
        if any(fault.operation == OF_TOKENS for fault in self._pending):
            self._admin.void_tokens()
        self._pending.clear()

    def hits(self, requests_seen: Iterator[Row]) -> Counter[str]:
        """How often each kind was applied, by the provider's log of requests where possible."""
        found = Counter(self._counted)
        for row in requests_seen:
            for kind in (row["fault"] or "").split("+"):
                if kind:
                    found[fault_name(row["operation"], kind, {})] += 1
        return found

    def strike(self, fault: ProviderFault) -> None:
        """Set a one-time fault. A token fault also expires the tokens, so that it applies soon."""
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
                # The provider is frozen: try again later.
                pass
            self._over.wait(_RETRY_S)

    def _tokens_are_struck(self) -> bool:
        """Whether a token fault has not been applied yet.

        While all workers are frozen, token faults would accumulate and cause an outage of minutes
        afterwards.
        """
        return any(row["operation"] == OF_TOKENS and row["left"] for row in self._admin.faults())

    def _count(self) -> None:
        for row in self._admin.faults():
            if row["kind"] in COUNTED_AT_THE_FAULT:
                name = fault_name(row["operation"], row["kind"], row["parameters"])
                self._counted[name] += row["applied"]
