"""A whole stack whose processes all export metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg
import pytest
import requests

from devstack.places import free_port
from devstack.stack import Stack
from devstack.supervisor import wait_until
from tests.builders import PAYER
from tests.metrics.figures import Figures, figures_at

PATIENCE_S = 60.0
TENANT = "figures"


@dataclass
class Installation:
    """Two gunicorn workers, a Celery worker and beat."""

    stack: Stack
    worker_url: str
    beat_url: str
    key: str

    @property
    def api(self) -> Figures:
        return figures_at(self.stack.api_url)

    @property
    def worker(self) -> Figures:
        return figures_at(self.worker_url)

    @property
    def beat(self) -> Figures:
        return figures_at(self.beat_url)

    @property
    def folder(self) -> Path:
        """The folder in which gunicorn's processes count."""
        (found,) = {
            Path(opened.path).parent
            for opened in psutil.Process(self.stack.processes["api"].pid).open_files()
            if Path(opened.path).name == "owner"
        }
        return found

    def pay(self, idempotency_key: str = "") -> requests.Response:
        answer = requests.post(
            f"{self.stack.api_url}/api/v1/payments",
            json={"amount": 1000, "currency": "EUR", "payer": PAYER},
            headers={"X-API-Key": self.key, "Idempotency-Key": idempotency_key or str(uuid4())},
            timeout=30,
        )
        assert answer.status_code == 201, answer.text
        return answer

    def await_rest(self) -> None:
        """Wait until every payment has ended, and the worker has counted it."""
        wait_until(
            lambda: self.api.total("survey_up") == 1 and self.api.total("open_payments") == 0,
            what="some are open",
            limit_s=PATIENCE_S,
        )
        # The worker counts just after the commit that the gauges show.
        wait_until(self._has_counted_all, what="some are not counted", limit_s=PATIENCE_S)

    def _has_counted_all(self) -> bool:
        with psycopg.connect(self.stack.administrator_url) as connection:
            (ended,) = connection.execute(
                "SELECT count(*) FROM payments WHERE status <> 'PENDING'"
            ).fetchone() or (0,)
        worker = self.worker
        # It counts the time to the end last.
        return worker.total("time_to_final_seconds_count") >= ended


@pytest.fixture(scope="module")
def installation(stack_factory: partial[Stack]) -> Iterator[Installation]:
    worker_port, beat_port = free_port(), free_port()
    settings = {
        "RATE_LIMIT_DEFAULT": "1000000 per minute",
        "WORKER_PORT": str(worker_port),
        "BEAT_PORT": str(beat_port),
    }
    with stack_factory(workers=2, settings=settings) as stack:
        yield Installation(
            stack,
            f"http://127.0.0.1:{worker_port}",
            f"http://127.0.0.1:{beat_port}",
            stack.issue_key(TENANT),
        )
