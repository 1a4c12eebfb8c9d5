"""This process's payment processor: any thread may call it, and one at a time runs its loop."""

from __future__ import annotations

import threading
from typing import Final

from flask import Flask

from payments_app.payments import processor
from payments_app.payments.account_slots import AccountSlots
from payments_app.payments.exchange_pool import ExchangeResult
from payments_app.worker.exchange_threads import ThreadExchangePool
from payments_app.worker.heartbeat import Heartbeat

# The processor's name in `app.extensions`.
PROCESSOR: Final = "maramoja_payment_processor"


class PaymentProcessor:
    """Claims due payments, has a thread pool call the providers, and records the results."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        # The poller replaces it with its own.
        self.heartbeat = Heartbeat()
        self._pool = ThreadExchangePool(app, on_collect=self._went_round)
        self._slots = AccountSlots()
        # Results that are not written yet: a payment was locked, or the database was unavailable.
        self._unrecorded: list[ExchangeResult] = []
        # At most one thread runs the loop; a concurrent call sets a flag that makes it run again.
        self._lock = threading.Lock()
        self._rerun = threading.Event()

    def run_once(self) -> None:
        """Process due payments, in an app context. If the loop runs already, have it run again."""
        self._rerun.set()
        self._pool.wake()
        # If another call set the flag while this loop was ending, no other thread would run it.
        while self._rerun.is_set() and self._lock.acquire(blocking=False):
            try:
                self._rerun.clear()
                gateway = self._app.extensions["maramoja"].gateway
                processor.process_due(gateway, self._pool, self._slots, self._unrecorded)
            finally:
                self._lock.release()

    def _went_round(self) -> None:
        # The process also counts as alive while it works off a long queue.
        self.heartbeat.touch()

    def join(self) -> None:
        """Wait until the exchanges that are under way have ended; each has a deadline."""
        self._pool.join()
