"""The simulator's settings, with their checks. They are in memory only: a restart resets them."""

from dataclasses import asdict, dataclass, fields, replace

from simulator.inputs import (
    Check,
    amount,
    count,
    known_fields,
    one_of,
    seconds,
    seconds_or_never,
)

CALLBACK_MODES = (
    "normal",
    "none",
    "twice",
    "times",
    "late",
    "early",
    "out_of_order",
    "wrong_amount",
    "forged",
    "contradictory",
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that can change while the simulator runs; docs/simulator.md says what each does."""

    approval_delay_s: float | None = 0.0
    delayed_success_s: float | None = 30.0
    stuck_pending_s: float | None = None
    reason_form: str = "string"
    callback_mode: str = "normal"
    callback_verb: str = "PUT"
    callback_times: int = 3
    callback_delay_s: float = 5.0
    callback_timeout_s: float = 2.0
    token_ttl_s: float = 3600.0
    platform: str = "legacy"
    opening_balance: str = "1000000"

    def changed(self, given: dict[str, object]) -> "Settings":
        """Replace some settings, each checked."""
        known_fields(given, set(_CHECKS))
        checked = {name: _CHECKS[name](name, value) for name, value in given.items()}
        return replace(self, **checked)  # type: ignore[arg-type]  # each check returns its type

    def shown(self) -> dict[str, object]:
        """The settings as the admin API shows them."""
        return asdict(self)


_CHECKS: dict[str, Check] = {
    "approval_delay_s": seconds_or_never,
    "delayed_success_s": seconds_or_never,
    "stuck_pending_s": seconds_or_never,
    "reason_form": one_of("string", "object"),
    "callback_mode": one_of(*CALLBACK_MODES),
    "callback_verb": one_of("PUT", "POST"),
    "callback_times": count,
    "callback_delay_s": seconds,
    "callback_timeout_s": seconds,
    "token_ttl_s": seconds,
    "platform": one_of("legacy", "new"),
    "opening_balance": amount,
}

SETTING_NAMES = tuple(field.name for field in fields(Settings))
