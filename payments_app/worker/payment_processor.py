"""The payment processor of this process: any thread may call it, and one at a time runs its loop."""

from __future__ import annotations

import threading
from typing import Final

from flask import Flask

from payments_app.payments import processor
from payments_app.payments.account_slots import AccountSlots
from payments_app.payments.exchange_pool import ExchangeResult
from payments_app.worker.exchange_threads import ThreadExchangePool
from payments_app.worker.pulse import Pulse

# Its name among the app's extensions.
PROCESSOR: Final = "maramoja_payment_processor"


class PaymentProcessor:
    """Claims, and records for all threads that speak to providers. Call it in an app context."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        # Whoever watches this process sets its own.
        self.pulse = Pulse()
        self._pool = ThreadExchangePool(app, on_collect=self._went_round)
        self._slots = AccountSlots()
        # Results that could not be written yet: their payments are locked, or the database was away.
        self._unrecorded: list[ExchangeResult] = []
        # At most one thread runs the loop; a call beside it sets the flag that makes it run again.
        self._lock = threading.Lock()
        self._rerun = threading.Event()

    def run_once(self) -> None:
        """Do what is due. If another thread is at it, that one looks again, and this call returns."""
        self._rerun.set()
        self._pool.wake()
        # Called again while it was about to leave: nobody else would look.
        while self._rerun.is_set() and self._lock.acquire(blocking=False):
            try:
                self._rerun.clear()
                gateway = self._app.extensions["maramoja"].gateway
                processor.process_due(gateway, self._pool, self._slots, self._unrecorded)
            finally:
                self._lock.release()

    def _went_round(self) -> None:
        # A long queue is no silence.
        self.pulse.beat()

    def join(self) -> None:
        """Wait until what is under way has ended: each is bounded."""
        self._pool.join()
