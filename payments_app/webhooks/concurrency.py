"""How many deliveries one process sends at once, per endpoint and per tenant, in fair turns. Pure.

The limit of an endpoint that answers quickly grows step by step; that of an endpoint that is slow
or fails shrinks. A free slot goes to the tenant that has waited longest for a turn, and to that
tenant's endpoint that has waited longest.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from payments_app.kernel.concurrency import ConcurrencyLimits, LimitRules, Turns

# Deliveries at once to an endpoint that this process has no results of, and to a quick one.
FIRST_LIMIT: Final = 4
LIMIT_MAX: Final = 32
# A response within QUICK_S is quick; one that takes SLOW_S or longer is slow.
QUICK_S: Final = 1.0
SLOW_S: Final = 3.0
# After so many slow responses in a row (counted in the endpoint's row), one at a time is sent.
SLOW_IN_A_ROW: Final = 3
_RULES: Final = LimitRules(
    first=FIRST_LIMIT, least=1, most=LIMIT_MAX, quick_s=QUICK_S, slow_s=SLOW_S
)


class EndpointLimits:
    """How many deliveries each endpoint may have under way, from its responses to this process."""

    def __init__(self) -> None:
        self._limits = ConcurrencyLimits(_RULES)

    def limit(self, endpoint_id: UUID, *, slow_in_a_row: int = 0) -> int:
        """At least 1. `slow_in_a_row` is the count in the endpoint's row."""
        return 1 if slow_in_a_row >= SLOW_IN_A_ROW else self._limits.limit(endpoint_id)

    def record(self, endpoint_id: UUID, *, delivered: bool, elapsed_s: float) -> None:
        """Record the result and duration of one delivery."""
        self._limits.record(endpoint_id, answered=delivered, elapsed_s=elapsed_s)


@dataclass(frozen=True, slots=True)
class Waiting:
    """An endpoint with deliveries that are due, and how many more it may have under way."""

    endpoint_id: UUID
    tenant_id: UUID
    room: int


class FairTurns:
    """Assigns free slots one by one: to each tenant in turn, and to its endpoints in turn."""

    def __init__(self, per_tenant: int) -> None:
        """`per_tenant`: slots that one tenant may hold in this process."""
        self._per_tenant = per_tenant
        self._held: Counter[UUID] = Counter()
        self._turns = Turns()

    def take(self, tenant_id: UUID) -> None:
        """Count one more slot as held by the tenant."""
        self._held[tenant_id] += 1

    def free(self, tenant_id: UUID) -> None:
        """Count one slot less."""
        self._held[tenant_id] -= 1
        if not self._held[tenant_id]:
            del self._held[tenant_id]

    def share_out(self, slots: int, waiting: Sequence[Waiting]) -> dict[UUID, int]:
        """How many of the free slots each endpoint gets. An endpoint that gets none is left out."""
        by_tenant: defaultdict[UUID, list[Waiting]] = defaultdict(list)
        for one in waiting:
            if one.room > 0 and self._held[one.tenant_id] < self._per_tenant:
                by_tenant[one.tenant_id].append(one)
        turns = deque(
            _Turn(
                tenant_id,
                min(self._per_tenant - self._held[tenant_id], sum(one.room for one in theirs)),
                deque(sorted(theirs, key=lambda one: self._turns.last_served(one.endpoint_id))),
            )
            for tenant_id, theirs in sorted(
                by_tenant.items(), key=lambda item: self._turns.last_served(item[0])
            )
        )
        shares: Counter[UUID] = Counter()
        while slots and turns:
            turn = turns.popleft()
            endpoint = turn.next_endpoint(shares)
            shares[endpoint.endpoint_id] += 1
            self._turns.note(turn.tenant_id, endpoint.endpoint_id)
            slots -= 1
            turn.room -= 1
            if turn.room:
                turns.append(turn)
        return dict(shares)


@dataclass(slots=True)
class _Turn:
    """A waiting tenant: how many slots it can use, and its endpoints, the next one first."""

    tenant_id: UUID
    room: int
    endpoints: deque[Waiting]

    def next_endpoint(self, shares: Counter[UUID]) -> Waiting:
        """The endpoint that gets the tenant's next slot. There is one while `room` is left."""
        while True:
            endpoint = self.endpoints.popleft()
            if shares[endpoint.endpoint_id] < endpoint.room:
                self.endpoints.append(endpoint)
                return endpoint
