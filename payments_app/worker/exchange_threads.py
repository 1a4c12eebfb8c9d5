"""The worker's exchange pool: threads that wait for providers, so many and no more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from flask import Flask

from payments_app.payments.exchange_pool import ExchangeJob, ExchangeResult

log = structlog.get_logger(__name__)

# Twelve accounts that are silent still leave none without a slot: each holds at most so many of them
# as payments/account_slots.py gives it.
SLOTS: Final = 96
# So long, once one result is in, for others to be written with it. Nobody waits for so little, and
# a commit for each alone would cost more than the whole exchange.
GATHER_S: Final = 0.02
# What falls due meanwhile is looked for so often, though nobody calls: the poller's own thread may
# be the one that waits here, and the broker away.
LOOK_S: Final = 0.5


class ThreadExchangePool:
    """See payments.exchange_pool.ExchangePool. Any thread may `wake` the one that collects."""

    def __init__(
        self, app: Flask, count: int = SLOTS, *, on_collect: Callable[[], None] | None = None
    ) -> None:
        """`on_collect` is called each time that results are asked for: the loop goes round."""
        self._app = app
        self._on_collect = on_collect
        self._count = count
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="exchange")
        # Guards what follows: how many run, what has ended (None for one that failed), who called.
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
        """There may be more to do: let whoever waits for results look."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until those that run have ended: each is bounded."""
        self._threads.shutdown(wait=True)

    def _run(self, job: ExchangeJob) -> None:
        result = None
        try:
            with self._app.app_context():
                result = job()
        except Exception:
            # What became of it is not recorded: its lease ends, and the provider is asked.
            log.exception("payment.exchange_failed")
        finally:
            with self._changed:
                self._ended.append(result)
                self._changed.notify_all()
