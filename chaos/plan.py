"""The plan of a run, made from its seed alone. Pure: the same seed gives the same plan, anywhere.

Which request a fault meets depends on the machine; which faults are planned does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from random import Random
from typing import Final

from chaos.planned_pairs import PlannedPair, plan_pairs
from chaos.process_faults import ProcessFault, choose_process_faults
from chaos.provider_faults import ProviderFaultPlan, choose_provider_faults
from chaos.scripts import Script, write_scripts

TENANTS: Final = ("amber", "basil", "cedar")
CLIENTS_PER_TENANT: Final = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """One run: the provider's faults, the process faults, each client's script, and the payments
    that meet a pair of faults.
    """

    seed: int
    seconds: float
    redis: bool
    weather: ProviderFaultPlan
    disasters: tuple[ProcessFault, ...]
    scripts: tuple[Script, ...]
    pairs: tuple[PlannedPair, ...] = ()

    def as_json(self) -> str:
        """The whole plan, to be stored beside the report."""
        return json.dumps(asdict(self), indent=1)

    def digest(self) -> str:
        """A short name: equal for equal plans."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()[:16]


def make_plan(seed: int, *, seconds: float, redis: bool = True) -> Plan:
    """The plan of this seed. Each part draws from a random stream of its own, so that a change of
    one part does not change the others.
    """
    streams = _streams(seed)
    scripts = write_scripts(
        streams["scripts"],
        tenants=TENANTS,
        clients_per_tenant=CLIENTS_PER_TENANT,
        seconds=seconds,
    )
    pairs, scripts = plan_pairs(streams["pairs"], scripts)
    return Plan(
        seed=seed,
        seconds=seconds,
        redis=redis,
        weather=choose_provider_faults(streams["weather"], seconds=seconds),
        disasters=choose_process_faults(streams["disasters"], seconds=seconds, redis=redis),
        scripts=scripts,
        pairs=pairs,
    )


def _streams(seed: int) -> Mapping[str, Random]:
    # The seed is a text: all versions of Python hash a text seed in the same way.
    return {name: Random(f"{seed}/{name}") for name in ("weather", "disasters", "scripts", "pairs")}
