"""The engine of this process: whoever rings, one thread claims and writes down for all hands."""

from __future__ import annotations

import threading
from typing import Final

from flask import Flask

from payments_app.payments import lifecycle
from payments_app.worker.hands import WorkersHands

# Its name among the app's extensions.
ENGINE: Final = "maramoja_engine"


class Engine:
    """Any thread may ask it to look; in an application context."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._hands = WorkersHands(app)
        self._turn = threading.Lock()
        self._asked = threading.Event()

    def look(self) -> None:
        """Do what is due; if another thread is at it, have that one look once more."""
        self._asked.set()
        self._hands.look_again()
        # Asked again while it was about to leave: nobody else would look.
        while self._asked.is_set() and self._turn.acquire(blocking=False):
            try:
                self._asked.clear()
                lifecycle.advance_due_payments(self._app.extensions["maramoja"].rails, self._hands)
            finally:
                self._turn.release()

    def join(self) -> None:
        """Wait until what is under way has ended: each is bounded."""
        self._hands.join()
