"""Beat's scheduler, with a pulse that its port tells of."""

from __future__ import annotations

from typing import Any, Final

from celery.beat import Scheduler

from payments_app.worker.pulse import Pulse

# One process runs one beat, which Celery makes by this class' name.
PULSE: Final = Pulse()


class TickingScheduler(Scheduler):  # type: ignore[misc]  # Celery has no types
    """In memory: two beats in one folder don't fight over a file, and nothing is lost with it."""

    def tick(self, *args: Any, **options: Any) -> float:
        """See Scheduler."""
        PULSE.beat()
        pause_s: float = super().tick(*args, **options)
        return pause_s
