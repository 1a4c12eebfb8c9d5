"""Repeated failures produce few log lines, each with the number of failures."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from payments_app.kernel.logs import configure_logs
from payments_app.worker.failures import GAP_MAX_S, FailuresInARow

AWAY = OperationalError("SELECT 1", {}, Exception("connection refused"))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Structlog caches the configuration of a used logger, so this test configures it, too."""
    configure_logs(level="INFO", log_format="json")
    return caplog


def lines(logged: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.msg for record in logged.records if isinstance(record.msg, dict)]


def lines_of(
    error: Exception, *, times: int, every_s: float, logged: pytest.LogCaptureFixture
) -> list[dict[str, Any]]:
    """The log lines of this many failures in a row, followed by a success."""
    now = [100.0]
    failures = FailuresInARow(seconds=lambda: now[0], queue="payments")
    for _ in range(times):
        try:
            raise error
        except Exception as caught:  # noqa: BLE001  as a poll does
            failures.failed(caught)
        now[0] += every_s
    failures.went_well()
    failures.went_well()
    return lines(logged)


def test_a_database_that_is_away_for_an_hour_is_some_seventy_lines_without_a_traceback(
    logged: pytest.LogCaptureFixture,
) -> None:
    *lines, end = lines_of(AWAY, times=18_000, every_s=0.2, logged=logged)
    assert {line["event"] for line in lines} == {"poller.database_unavailable"}
    assert not [line for line in lines if "exception" in line]
    times = [line["for_s"] for line in lines]
    assert times[:5] == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert all(after - before <= GAP_MAX_S + 0.3 for before, after in pairwise(times))
    assert len(lines) < 70
    assert lines[0]["failures"] == 1
    assert lines[1]["failures"] == 6
    wanted = {"event": "poller.works_again", "level": "info", "queue": "payments"}
    assert end.items() >= (wanted | {"failures": 18_000, "for_s": 3600.0}).items()


def test_anything_else_comes_with_its_traceback_as_rarely(
    logged: pytest.LogCaptureFixture,
) -> None:
    *lines, _ = lines_of(ValueError("a bug"), times=300, every_s=0.2, logged=logged)
    assert {line["event"] for line in lines} == {"poller.failed"}
    assert all("a bug" in line["exception"] for line in lines)
    assert len(lines) == 7


def test_what_went_well_is_no_line(logged: pytest.LogCaptureFixture) -> None:
    FailuresInARow().went_well()
    assert not lines(logged)
