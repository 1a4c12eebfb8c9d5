"""Celery beat's scheduler, with a heartbeat that its health server reports."""

from __future__ import annotations

from typing import Any, Final

from celery.beat import Scheduler

from payments_app.worker.heartbeat import Heartbeat

# A global, because Celery creates the scheduler by its class name. A process runs one beat.
BEAT_HEARTBEAT: Final = Heartbeat()


class TickingScheduler(Scheduler):  # type: ignore[misc]  # Celery has no types
    """In memory: two beats in one folder don't share a file, and its state may be lost."""

    def tick(self, *args: Any, **options: Any) -> float:
        """See Scheduler."""
        BEAT_HEARTBEAT.touch()
        pause_s: float = super().tick(*args, **options)
        return pause_s
