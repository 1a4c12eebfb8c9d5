"""The worker's exchange pool: a fixed number of threads that wait for providers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from flask import Flask

from payments_app.payments.exchange_pool import ExchangeJob, ExchangeResult

log = structlog.get_logger(__name__)

# Eleven accounts that don't answer can't take all slots from the others: each gets few, as
# payments/account_slots.py says.
SLOTS: Final = 96
# After the first result, wait this long for more and write them in one transaction: a commit for
# each result would cost more than its exchange. The delay is too short to matter.
GATHER_S: Final = 0.05
# `collect` returns at least this often, so that newly due payments are claimed even without a call:
# the poller's own thread may be the one that waits here, and the broker may be unavailable.
LOOK_S: Final = 0.5


class ThreadExchangePool:
    """See payments.exchange_pool.ExchangePool. Any thread may `wake` the collecting thread."""

    def __init__(
        self, app: Flask, count: int = SLOTS, *, on_collect: Callable[[], None] | None = None
    ) -> None:
        """`on_collect` runs at each call of `collect`, so once for each pass of the loop."""
        self._app = app
        self._on_collect = on_collect
        self._count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="exchange")
        # Guards the fields below: how many jobs run, the ended ones' results (None for a failed
        # job), and whether `wake` was called.
        self._changed = threading.Condition()
        self._running = 0
        self._ended: list[ExchangeResult | None] = []
        self._is_woken = False

    @property
    def free_slots(self) -> int:
        """See ExchangePool."""
        return self._count - self._running

    @property
    def is_idle(self) -> bool:
        """See ExchangePool."""
        return not self._running

    def submit(self, job: ExchangeJob) -> None:
        """See ExchangePool."""
        self._running += 1
        self._threads.submit(self._run, job)

    def collect(self) -> list[ExchangeResult]:
        """See ExchangePool."""
        if self._on_collect is not None:
            self._on_collect()
        if not self._running:
            return []
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._is_woken, LOOK_S)
            if self._ended:
                self._changed.wait_for(lambda: len(self._ended) == self._running, GATHER_S)
            ended, self._ended, self._is_woken = self._ended, [], False
        self._running -= len(ended)
        return [result for result in ended if result is not None]

    def wake(self) -> None:
        """There may be more due work: let the thread that waits in `collect` continue."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until the running jobs have ended; each has a deadline."""
        self._threads.shutdown(wait=True)

    def _run(self, job: ExchangeJob) -> None:
        result = None
        try:
            with self._app.app_context():
                result = job()
        except Exception:
            # The result is unknown and not recorded: the lease ends, then a status check follows.
            log.exception("payment.exchange_failed")
        finally:
            with self._changed:
                self._ended.append(result)
                self._changed.notify_all()
