"""The worker's own clock: due payments are found, and events sealed, while the broker is away.

Celery's consumer can lose its broker, and has been seen to come back deaf; then no doorbell
reaches this process. A few threads look at the rows themselves, once a second.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import structlog
from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from flask import Flask

from payments_app.payments import seals
from payments_app.worker.courier import Courier
from payments_app.worker.engine import ENGINE, Engine
from payments_app.worker.pulse import Pulse

log = structlog.get_logger(__name__)

LOOK_EVERY_S: Final = 1.0
# News of payments are published, and due deliveries sent; nothing rings for them.
TELL_EVERY_S: Final = 0.2
# What was removed before it was sealed leaves no trace of its own.
SEAL_EVERY_S: Final = 60.0
# A provider call is bounded at 30 s; one that is under way at the end is waited for this long.
JOIN_S: Final = 35.0


class Clockwork:
    """Threads that look for due payments, for deliveries, and seal events, until told to stop."""

    def __init__(
        self,
        app: Flask,
        stop: threading.Event,
        *,
        seal_every_s: float = SEAL_EVERY_S,
        pulse: Pulse | None = None,
    ) -> None:
        self._app = app
        self._stop = stop
        self._pulse = pulse or Pulse()
        self._engine: Engine = app.extensions[ENGINE]
        self._threads = [
            threading.Thread(
                target=self._repeat,
                args=(self._engine.look, LOOK_EVERY_S),
                name="look",
                daemon=True,
            )
        ]
        self._courier = Courier(app, stop, self._pulse)
        self._threads.append(
            threading.Thread(
                target=self._repeat,
                args=(self._courier.look, TELL_EVERY_S),
                name="tell",
                daemon=True,
            )
        )
        self._threads.append(
            threading.Thread(
                target=self._repeat,
                args=(seals.seal_events, seal_every_s),
                name="seal",
                daemon=True,
            )
        )

    def connect(self) -> None:
        """Start and stop with the Celery worker of this process."""
        worker_init.connect(self.start, weak=False)
        worker_shutting_down.connect(self.stop, weak=False)
        worker_shutdown.connect(self.join, weak=False)

    def start(self, **_signal: Any) -> None:
        """Begin to look."""
        for thread in self._threads:
            thread.start()

    def stop(self, **_signal: Any) -> None:
        """Take nothing new on; what is in hand is finished."""
        self._stop.set()

    def is_alive(self) -> bool:
        """Whether it still ticks. One that was told to end, and finishes what is in hand, is."""
        if self._stop.is_set():
            return True
        return self._pulse.is_felt() and all(thread.is_alive() for thread in self._threads)

    def join(self, **_signal: Any) -> None:
        """Wait until what was in hand is finished."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(JOIN_S)
        self._engine.join()
        self._courier.join()

    def _repeat(self, work: Callable[[], object], every_s: float) -> None:
        while not self._stop.wait(every_s):
            self._pulse.beat()
            try:
                with self._app.app_context():
                    work()
            except Exception:
                # The database is away, or a bug: said each time, and tried again.
                log.exception("clockwork.failed")
