"""Faults: what can go wrong, for which calls, how often. Effects are in fault_effects.py.

Source of the kinds: provider facts 1.10, 1.17 item 6, and the complaints of part 2.
"""

import itertools
import random
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from simulator.inputs import (
    Check,
    amount,
    count,
    known_fields,
    mapping,
    one_of,
    optional,
    probability,
    seconds,
    text,
    whole,
)
from simulator.settings import CALLBACK_MODES

OPERATIONS = (
    "create",
    "status",
    "token",
    "balance",
    "holder",
    "notification",
    "provisioning",
)
ANY = "any"
_SPENT_MAX = 1000
_FIELDS = {
    "kind",
    "operation",
    "times",
    "match",
    "nth",
    "spares",
    "probability",
    "seed",
    "parameters",
}
MATCHABLE = ("msisdn", "reference", "external_id", "product", "api_user")


class Phase(Enum):
    """When a fault applies."""

    BEFORE = "before"  # before anything is checked or created
    ACCEPT = "accept"  # while the payment is created
    AFTER = "after"  # after the call has had its effect
    CALLBACK = "callback"  # when the callbacks of a new payment are planned


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault: when, for which operations (the first is the default), parameters."""

    phase: Phase
    operations: tuple[str, ...]
    parameters: dict[str, tuple[object, Check]] = field(default_factory=dict)
    # An AFTER fault applies to calls that succeeded; with this it applies to refusals too.
    any_answer: bool = False


def _delay(default: float) -> dict[str, tuple[object, Check]]:
    return {"delay_s": (default, seconds)}


# "create" is first and so the default: most faults are for it.
_ALL = ("create", ANY, *OPERATIONS[1:])
_CREATE = ("create",)
_STATUS = ("status",)
_TOKEN = ("token",)
_RETRY_AFTER: dict[str, tuple[object, Check]] = {"retry_after": (None, optional(whole))}

KINDS: dict[str, Kind] = {
    "refuse_400": Kind(Phase.BEFORE, _ALL),
    "refuse_500_code": Kind(Phase.BEFORE, _ALL, {"code": ("NOT_ALLOWED", text)}),
    "internal_error": Kind(Phase.BEFORE, _ALL),
    "reset_before": Kind(Phase.BEFORE, _ALL, {"how": ("reset", one_of("reset", "close"))}),
    "hang": Kind(Phase.BEFORE, _ALL, _delay(30.0)),
    "waf_html_200": Kind(Phase.BEFORE, _ALL),
    "html_403": Kind(Phase.BEFORE, _ALL),
    "unauthorized_401": Kind(
        Phase.BEFORE, ("create", ANY, "status", "balance", "holder", "notification")
    ),
    "quota_403": Kind(Phase.BEFORE, _ALL, {"replenished_in": ("00:00:05", text)}),
    "too_many_429": Kind(Phase.BEFORE, _ALL, _RETRY_AFTER),
    "unavailable_503": Kind(Phase.BEFORE, _ALL, _RETRY_AFTER),
    "no_route_404": Kind(Phase.BEFORE, _ALL),
    "conflict_409": Kind(Phase.BEFORE, _CREATE),
    "status_404": Kind(Phase.BEFORE, _STATUS),
    "token_500": Kind(Phase.BEFORE, _TOKEN),
    "token_401": Kind(Phase.BEFORE, _TOKEN),
    "token_html_200": Kind(Phase.BEFORE, _TOKEN),
    "token_slow": Kind(Phase.BEFORE, _TOKEN, _delay(10.0)),
    "invisible": Kind(Phase.ACCEPT, _CREATE, _delay(5.0)),
    "accept_then_401": Kind(Phase.AFTER, _CREATE),
    "accept_then_404": Kind(Phase.AFTER, _CREATE),
    "accept_then_409": Kind(Phase.AFTER, _CREATE),
    "accept_then_429": Kind(Phase.AFTER, _CREATE, _RETRY_AFTER),
    "accept_then_500": Kind(Phase.AFTER, _CREATE, {"form": ("coded", one_of("coded", "bare"))}),
    "accept_then_503": Kind(Phase.AFTER, _CREATE),
    "accept_then_reset": Kind(Phase.AFTER, _CREATE, {"how": ("reset", one_of("reset", "close"))}),
    "accept_then_hang": Kind(Phase.AFTER, _CREATE, _delay(30.0)),
    "slow": Kind(Phase.AFTER, _ALL, _delay(1.0), any_answer=True),
    "garbage": Kind(Phase.AFTER, _ALL, {"form": ("bytes", one_of("bytes", "json", "cut", "body"))}),
    "empty_200": Kind(Phase.AFTER, _ALL),
    "gzip": Kind(Phase.AFTER, _ALL, any_answer=True),
    "many_headers": Kind(Phase.AFTER, _ALL, {"lines": (120, count)}, any_answer=True),
    "amount_number": Kind(Phase.AFTER, _STATUS),
    "token_without_life": Kind(Phase.AFTER, _TOKEN),
    "unknown_status_word": Kind(Phase.AFTER, _STATUS, {"word": ("ONGOING", text)}),
    "status_wrong_amount": Kind(Phase.AFTER, _STATUS, {"amount": ("1", amount)}),
    "connection_drip": Kind(Phase.AFTER, _ALL, {"interval_s": (0.02, seconds)}, any_answer=True),
    "callback": Kind(
        Phase.CALLBACK,
        _CREATE,
        {
            "mode": ("none", one_of(*CALLBACK_MODES)),
            "times": (3, count),
            **_delay(5.0),
        },
    ),
}


class Facts(Protocol):
    """What a fault can match on. Absent facts match nothing."""

    @property
    def operation(self) -> str:
        """One of OPERATIONS."""

    @property
    def product(self) -> str | None:
        """The product, such as collection."""

    @property
    def reference(self) -> str | None:
        """X-Reference-Id, in lower case."""

    @property
    def msisdn(self) -> str | None:
        """The number of the payer or payee."""

    @property
    def external_id(self) -> str | None:
        """The caller's externalId."""

    @property
    def api_user(self) -> str | None:
        """The API user of the account."""

    @property
    def nth(self) -> int:
        """The number of this request among those of its operation for this payment, from 1."""


@dataclass(slots=True)
class Fault:
    """A fault that is set. `left` counts down; None is unlimited.

    `nth`: it applies from the n-th request of its operation for one payment on. `spares`: it never
    applies to payers whose numbers begin with this prefix; empty spares no payer.
    """

    id: int
    kind: str
    operation: str
    left: int | None
    match: dict[str, str]
    probability: float
    parameters: dict[str, object]
    chance: random.Random
    nth: int = 1
    spares: str = ""
    applied: int = 0

    def seconds(self, name: str = "delay_s") -> float:
        """Read a parameter that is a time."""
        return seconds(name, self.parameters[name])

    def text(self, name: str) -> str:
        """Read a parameter that is a text."""
        return str(self.parameters[name])

    @property
    def phase(self) -> Phase:
        """When it applies."""
        return KINDS[self.kind].phase

    def hits(self, facts: Facts, *, went_well: bool) -> bool:
        """Whether it applies to this call, in its phase. Uses `chance` only if all else matches."""
        if self.operation not in {ANY, facts.operation}:
            return False
        if not went_well and not KINDS[self.kind].any_answer:
            return False
        if any(getattr(facts, name) != value for name, value in self.match.items()):
            return False
        if self.spares and (facts.msisdn or "").startswith(self.spares):
            return False
        # `facts.nth` reads the log of requests, so it is checked last and only if needed.
        if self.nth > 1 and facts.nth < self.nth:
            return False
        return self.probability >= 1 or self.chance.random() < self.probability

    def shown(self) -> dict[str, object]:
        """The fault as the admin API shows it."""
        return {
            "id": self.id,
            "kind": self.kind,
            "operation": self.operation,
            "left": self.left,
            "match": self.match,
            "nth": self.nth,
            "spares": self.spares,
            "probability": self.probability,
            "parameters": self.parameters,
            "applied": self.applied,
        }


class Faults:
    """The faults that are set, in order of setting: the first that matches applies."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids = itertools.count(1)
        # By phase: a call searches each phase, and there may be a thousand faults for single payments.
        self._set: dict[Phase, dict[int, Fault]] = {phase: {} for phase in Phase}
        # Spent faults are shown, but must not slow down the search for a fault.
        self._spent: deque[Fault] = deque(maxlen=_SPENT_MAX)

    def add(self, documents: Iterable[dict[str, object]]) -> list[Fault]:
        """Set faults from admin documents, each field checked: all of them, or none."""
        faults = [_read(next(self._ids), document) for document in documents]
        with self._lock:
            for fault in faults:
                self._set[fault.phase][fault.id] = fault
        return faults

    def take(self, phase: Phase, facts: Facts, *, went_well: bool = True) -> Fault | None:
        """Find the fault that applies now and count it down; None for most calls."""
        faults = self._set[phase]
        if not faults:
            return None
        with self._lock:
            for fault in faults.values():
                if fault.hits(facts, went_well=went_well):
                    self._count_down(fault)
                    return fault
        return None

    def all(self) -> list[Fault]:
        """The faults that are set, and the last of those that are spent."""
        with self._lock:
            is_set = [fault for faults in self._set.values() for fault in faults.values()]
            return sorted((*is_set, *self._spent), key=lambda fault: fault.id)

    def remove(self, fault_id: int) -> bool:
        """Remove one fault; False if no fault with this id can still apply."""
        with self._lock:
            return any(faults.pop(fault_id, None) for faults in self._set.values())

    def clear(self) -> None:
        """Remove all faults."""
        with self._lock:
            for faults in self._set.values():
                faults.clear()
            self._spent.clear()

    def _count_down(self, fault: Fault) -> None:
        fault.applied += 1
        if fault.left is None:
            return
        fault.left -= 1
        if not fault.left:
            self._spent.append(self._set[fault.phase].pop(fault.id))


def _read(fault_id: int, document: dict[str, object]) -> Fault:
    known_fields(document, _FIELDS)
    kind_name = str(one_of(*KINDS)("kind", document.get("kind")))
    kind = KINDS[kind_name]
    operation = document.get("operation", kind.operations[0])
    one_of(*kind.operations)("operation", operation)
    times = document.get("times", 1)
    seed = document.get("seed")
    return Fault(
        id=fault_id,
        kind=kind_name,
        operation=str(operation),
        left=None if times is None else count("times", times),
        match=_read_match(document.get("match")),
        nth=count("nth", document.get("nth", 1)),
        spares=text("spares", document["spares"]) if document.get("spares") else "",
        probability=probability("probability", document.get("probability", 1)),
        parameters=_read_parameters(kind, document.get("parameters")),
        chance=random.Random(None if seed is None else whole("seed", seed)),  # noqa: S311
    )


def _read_match(given: object) -> dict[str, str]:
    match = {} if given is None else mapping("match", given)
    known_fields(match, set(MATCHABLE), "match.")
    read = {name: text(f"match.{name}", value) for name, value in match.items()}
    if "reference" in read:
        read["reference"] = read["reference"].lower()
    return read


def _read_parameters(kind: Kind, given: object) -> dict[str, object]:
    parameters = {} if given is None else mapping("parameters", given)
    known_fields(parameters, set(kind.parameters), "parameters.")
    return {
        name: check(f"parameters.{name}", parameters[name]) if name in parameters else default
        for name, (default, check) in kind.parameters.items()
    }
