"""The provider's faults and settings in a run. Pure: drawn from a random stream.

Background faults apply to any request by chance. In addition, one-time faults of each kind are
set at times of their own, so that a short run meets every kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

Parameters = Mapping[str, str | float]

# Payers whose number begins so have faults of their own (planned_pairs.py).
SCRIPTED_PAYERS: Final = "256779"
# The operation whose faults expire tokens.
OF_TOKENS: Final = "token"
# (operation, kind) → parameter values to draw from. Names are the simulator's.
_ANYWHERE: Final[Mapping[str, Mapping[str, tuple[str | float, ...]]]] = {
    "refuse_400": {},
    "refuse_500_code": {"code": ("NOT_ALLOWED", "PAYER_NOT_FOUND")},
    "internal_error": {},
    "reset_before": {"how": ("reset", "close")},
    # Shorter than the gateway waits for an answer, and longer.
    "hang": {"delay_s": (2.0, 16.5)},
    "waf_html_200": {},
    "html_403": {},
    "unauthorized_401": {},
    "too_many_429": {"retry_after": (1, 2)},
    "no_route_404": {},
    "unavailable_503": {"retry_after": (1, 2)},
    "slow": {"delay_s": (0.5, 3.0)},
    "garbage": {"form": ("bytes", "json", "cut", "body")},
    "empty_200": {},
    "connection_drip": {"interval_s": (0.003,)},
}
_CREATE: Final[Mapping[str, Mapping[str, tuple[str | float, ...]]]] = {
    "accept_then_401": {},
    "accept_then_404": {},
    "accept_then_409": {},
    "accept_then_429": {"retry_after": (1, 2)},
    "accept_then_500": {"form": ("coded", "bare")},
    "accept_then_503": {},
    "accept_then_reset": {"how": ("reset", "close")},
    "accept_then_hang": {"delay_s": (3.0, 16.5)},
    "invisible": {"delay_s": (1.0, 4.0)},
}
_STATUS: Final[Mapping[str, Mapping[str, tuple[str | float, ...]]]] = {
    "status_404": {},
    "unknown_status_word": {"word": ("ONGOING", "PENDING", "TIMEOUT")},
    "status_wrong_amount": {"amount": ("1", "999999")},
}
_TOKEN: Final[Mapping[str, Mapping[str, tuple[str | float, ...]]]] = {
    "token_500": {},
    "token_401": {},
    "token_html_200": {},
    "token_slow": {"delay_s": (1.0, 4.0)},
}
CALLBACK_MODES: Final = (
    *("none", "twice", "times", "late", "early", "out_of_order"),
    *("wrong_amount", "forged", "contradictory"),
)
# Low enough that most payments meet no fault.
_CHANCE_MIN: Final = 0.002
_CHANCE_MAX: Final = 0.014
# A hang blocks a thread of the worker for seconds.
_HANG_CHANCE_MAX: Final = 0.004
_CALLBACK_CHANCE: Final = 0.04
# One-time faults of each kind per minute, and the part of the run in which they are set.
_STRIKES_PER_MINUTE: Final = 2
# After some failures in a row the gateway requests a token only every 10 s. Token faults at that
# rate would cause an outage until the end of the run, and no other fault would be met.
_TOKENS_EVERY: Final = 5
_STRIKES_FROM: Final = 0.05
_STRIKES_UNTIL: Final = 0.8
_SEED_BITS: Final = 31


@dataclass(frozen=True, slots=True)
class ProviderFault:
    """One fault: by chance during the whole run, or (with `at_s`) once.

    `match`, `nth`: only such requests, and only from the n-th of a payment on; see the simulator.
    Without a match it does not apply to payers that have faults of their own.
    """

    operation: str
    kind: str
    parameters: Parameters
    probability: float = 1.0
    seed: int | None = None
    at_s: float | None = None
    match: Mapping[str, str] = field(default_factory=dict)
    nth: int = 1

    @property
    def name(self) -> str:
        """The name under which its applications are counted."""
        return fault_name(self.operation, self.kind, self.parameters)

    def document(self) -> dict[str, object]:
        """The fault as the simulator's admin API expects it."""
        return {
            "kind": self.kind,
            "operation": self.operation,
            "times": None if self.at_s is None else 1,
            "probability": self.probability,
            "seed": self.seed,
            "parameters": dict(self.parameters),
            "match": dict(self.match),
            "nth": self.nth,
            "spares": "" if self.match else SCRIPTED_PAYERS,
        }


@dataclass(frozen=True, slots=True)
class ProviderFaultPlan:
    """The provider's faults and settings in this run."""

    settings: Mapping[str, str | float]
    background: tuple[ProviderFault, ...]
    strikes: tuple[ProviderFault, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every kind that must be met for the run to count."""
        return tuple(sorted({fault.name for fault in self.strikes}))


def fault_name(operation: str, kind: str, parameters: Mapping[str, object]) -> str:
    """`create accept_then_reset`, `status status_404`, `callback forged`."""
    if kind == "callback":
        return f"callback {parameters['mode']}"
    return f"{operation} {kind}"


def choose_provider_faults(draw: Random, *, seconds: float) -> ProviderFaultPlan:
    """Draw the provider's settings, its background faults and the one-time faults."""
    return ProviderFaultPlan(
        settings={
            "approval_delay_s": round(draw.uniform(0.1, 1.2), 2),
            "delayed_success_s": round(draw.uniform(3, 8), 1),
            "token_ttl_s": draw.choice((20, 40)),
            "callback_verb": draw.choice(("PUT", "POST")),
            "reason_form": draw.choice(("string", "object")),
            "platform": draw.choice(("legacy", "new")),
        },
        background=tuple(_background(draw)),
        strikes=tuple(_strikes(draw, seconds)),
    )


def _background(draw: Random) -> Iterable[ProviderFault]:
    for operation, kinds in _kinds():
        for kind, choices in kinds.items():
            highest = _HANG_CHANCE_MAX if kind.endswith("hang") else _CHANCE_MAX
            yield ProviderFault(
                operation,
                kind,
                _drawn(draw, choices),
                probability=round(draw.uniform(_CHANCE_MIN, highest), 4),
                seed=draw.getrandbits(_SEED_BITS),
            )
    for mode in CALLBACK_MODES:
        yield ProviderFault(
            "create",
            "callback",
            {"mode": mode, "delay_s": round(draw.uniform(0.5, 4), 1)},
            probability=_CALLBACK_CHANCE,
            seed=draw.getrandbits(_SEED_BITS),
        )


def _strikes(draw: Random, seconds: float) -> list[ProviderFault]:
    found = []
    for number in range(max(1, round(_STRIKES_PER_MINUTE * seconds / 60))):
        for operation, kinds in _kinds():
            if operation == OF_TOKENS and number % _TOKENS_EVERY:
                continue
            for kind, choices in kinds.items():
                found.append(
                    ProviderFault(
                        operation, kind, _drawn(draw, choices), at_s=_moment(draw, seconds)
                    )
                )
        for mode in CALLBACK_MODES:
            parameters = {"mode": mode, "delay_s": 2.0}
            found.append(
                ProviderFault("create", "callback", parameters, at_s=_moment(draw, seconds))
            )
    return sorted(found, key=lambda fault: (fault.at_s or 0.0, fault.name))


def _kinds() -> tuple[tuple[str, Mapping[str, Mapping[str, tuple[str | float, ...]]]], ...]:
    return (
        ("create", {**_ANYWHERE, **_CREATE}),
        ("status", {**_ANYWHERE, **_STATUS}),
        (OF_TOKENS, _TOKEN),
    )


def _drawn(draw: Random, choices: Mapping[str, tuple[str | float, ...]]) -> Parameters:
    return {name: draw.choice(values) for name, values in choices.items()}


def _moment(draw: Random, seconds: float) -> float:
    return round(draw.uniform(_STRIKES_FROM, _STRIKES_UNTIL) * seconds, 2)
