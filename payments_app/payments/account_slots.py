"""Which payments a process takes next: slots per account, fair turns by account and tenant. Pure.

An account holds no more slots than its limit, so a silent one blocks only its own. The limit grows
while the account answers quickly. Status checks hold at most half of an account's slots, and
submissions leave a quarter to checks: neither waits behind the other.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from payments_app.kernel.concurrency import ConcurrencyLimits, LimitRules, Turns
from payments_app.payments.claims import Lane, Queue
from payments_app.payments.states import Step
from payments_app.providers.contract import AccountKey, Observation, Verdict

# Slots of one account in one process. With fewer than `least` it would hardly notice that an
# account is quick again. A provider's answer takes longer than a webhook receiver's.
ACCOUNT_LIMITS: Final = LimitRules(first=8, least=4, most=32, quick_s=2.0, slow_s=5.0)


class AccountSlots:
    """The slots of one process. Any thread may hold one; one thread at a time shares them out."""

    def __init__(self, rules: LimitRules = ACCOUNT_LIMITS) -> None:
        self._rules = rules
        self._limits = ConcurrencyLimits(rules)
        self._turns = Turns()
        # Guards the limits and the counts.
        self._lock = threading.Lock()
        self._held: Counter[tuple[AccountKey, Step]] = Counter()

    def take(self, account: AccountKey, step: Step) -> None:
        """Count one more held slot."""
        with self._lock:
            self._held[account, step] += 1

    @contextmanager
    def held(self, account: AccountKey, step: Step) -> Iterator[None]:
        """For the work that a slot was taken for: releases the slot at the end of the block."""
        try:
            yield
        finally:
            with self._lock:
                self._held[account, step] -= 1
                if not self._held[account, step]:
                    del self._held[account, step]

    def learn(self, account: AccountKey, seen: Observation, *, took_s: float) -> None:
        """Adapt the limit to the account's response time. NOT_SENT counts only if it took long.

        `took_s`: with the wait for a token, in seconds.
        """
        if seen.verdict is Verdict.NOT_SENT and took_s < self._rules.slow_s:
            return
        with self._lock:
            self._limits.record(account, answered=True, elapsed_s=took_s)

    def share_out(
        self, slots: int, waiting: Mapping[Queue, int], is_open: Callable[[AccountKey, Step], bool]
    ) -> dict[Queue, int]:
        """How many free slots each queue gets: to each account in turn, one by one.

        `is_open`: whether anything of this account and step may be sent now.
        """
        by_account: defaultdict[AccountKey, dict[Queue, int]] = defaultdict(dict)
        for queue, count in waiting.items():
            if is_open(queue.account, step_of(queue)):
                by_account[queue.account][queue] = count
        accounts = deque(
            self._turn_of(account, by_account[account])
            for account in sorted(by_account, key=self._turns.last_served)
        )
        shares: Counter[Queue] = Counter()
        while slots and accounts:
            turn = accounts.popleft()
            if chosen := turn.next_queue():
                shares[chosen] += 1
                slots -= 1
                self._turns.note(turn.account, (turn.account, step_of(chosen)), chosen)
                accounts.append(turn)
        return dict(shares)

    def _turn_of(self, account: AccountKey, queues: Mapping[Queue, int]) -> _Turn:
        with self._lock:
            limit = self._limits.limit(account)
            held = {step: self._held[account, step] for step in Step}
        # The step that was served last, in this call or an earlier one, comes second.
        last = max(Step, key=lambda step: self._turns.last_served((account, step)))
        turn = _Turn(account, limit - sum(held.values()), last)
        turn.room = {
            Step.SUBMIT: limit - limit // 4 - held[Step.SUBMIT],
            Step.CHECK: max(1, limit // 2) - held[Step.CHECK],
        }
        for queue in sorted(queues, key=lambda one: (one.lane, self._turns.last_served(one))):
            turn.waiting[queue.lane].append((queue, queues[queue]))
        return turn


def step_of(queue: Queue) -> Step:
    """The step for the payments of this queue."""
    return Step.SUBMIT if queue.lane is Lane.SUBMIT else Step.CHECK


@dataclass(slots=True)
class _Turn:
    """A waiting account: how many slots it may take, in total and per step, and its queues."""

    account: AccountKey
    slots: int
    last: Step
    room: dict[Step, int] = field(default_factory=dict)
    waiting: dict[Lane, deque[tuple[Queue, int]]] = field(
        default_factory=lambda: {lane: deque() for lane in Lane}
    )

    def next_queue(self) -> Queue | None:
        """The queue that gets the account's next slot: steps alternate, tenants take turns."""
        for step in sorted(Step, key=lambda step: step is self.last):
            if self.slots > 0 and self.room[step] > 0 and (queue := self._next_of(step)):
                self.last = step
                self.slots -= 1
                self.room[step] -= 1
                return queue
        return None

    def _next_of(self, step: Step) -> Queue | None:
        lanes = (Lane.SUBMIT,) if step is Step.SUBMIT else (Lane.HINTED, Lane.CHECK)
        for lane in lanes:
            if self.waiting[lane]:
                queue, count = self.waiting[lane].popleft()
                if count > 1:
                    self.waiting[lane].append((queue, count - 1))
                return queue
        return None
