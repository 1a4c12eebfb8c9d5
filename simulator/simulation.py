"""The running simulator: the store, the settings, and what happens when a payment ends."""

import threading

from simulator.callbacks import Callbacks, Mode
from simulator.faults import Faults
from simulator.ledger import Order, Payment, Plan
from simulator.scenarios import Scenario, Status, Timing
from simulator.settings import Settings
from simulator.store import Store

# How often due payments and late callbacks are processed; reads of a payment do not wait for it.
_TICK_S = 0.03


class Simulation:
    """The state that the handlers share."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.settings = Settings()
        self.faults = Faults()
        self.callbacks = Callbacks(store)
        self._stopped = threading.Event()
        self._ticker = threading.Thread(target=self._tick_forever, name="ticker", daemon=True)

    def start(self) -> None:
        """Start the threads that end due payments and send callbacks."""
        self._ticker.start()
        self.callbacks.start()

    def close(self) -> None:
        """Stop the threads and close the store."""
        self._stopped.set()
        self.callbacks.stop()
        self._ticker.join(timeout=1)
        self.store.close()

    def accept(
        self, order: Order, scenario: Scenario, *, hidden_s: float, own_mode: Mode | None
    ) -> bool:
        """Create a payment and plan its end; False when its reference was used before."""
        now = self.store.clock.now()
        wait_s = self._wait_of(scenario.timing)
        plan = Plan(
            status=scenario.status,
            reason=scenario.reason,
            due_at=None if wait_s is None else now + wait_s,
            visible_at=now + hidden_s,
        )
        payment = self.store.ledger.accept(order, plan, now)
        if payment is None:
            return False
        self.callbacks.created(payment, self.settings, own_mode)
        return True

    def find(self, reference_id: str) -> Payment | None:
        """Find the payment in its current state."""
        payment = self.store.ledger.find(reference_id)
        if payment is None or payment.due_at is None:
            return payment
        if payment.due_at <= self.store.clock.now():
            self.settle_due()
            return self.store.ledger.find(reference_id)
        return payment

    def decide(self, reference_id: str, status: Status, reason: str | None) -> bool:
        """End a payment that waits, as the payer decided; False when it does not wait."""
        decided = self.store.ledger.decide(reference_id, status, reason, self.store.clock.now())
        if decided:
            self._tell([reference_id])
        return decided

    def settle_due(self) -> None:
        """End every payment that is due."""
        while ended := self.store.ledger.settle_due(self.store.clock.now()):
            self._tell(ended)

    def _wait_of(self, timing: Timing) -> float | None:
        match timing:
            case Timing.PROMPT:
                return self.settings.approval_delay_s
            case Timing.DELAYED:
                return self.settings.delayed_success_s
            case Timing.STUCK:
                return self.settings.stuck_pending_s

    def _tell(self, reference_ids: list[str]) -> None:
        for reference_id in reference_ids:
            payment = self.store.ledger.find(reference_id)
            if payment is not None:
                self.callbacks.ended(payment, self.settings)

    def _tick_forever(self) -> None:
        while not self._stopped.wait(_TICK_S):
            self.settle_due()
            self.callbacks.release_due(self.store.clock.now())
