"""What fails again and again: few lines, with how often it was."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from payments_app.worker.failures import GAP_MAX_S, FailuresInARow

AWAY = OperationalError("SELECT 1", {}, Exception("connection refused"))


def lines_of(error: Exception, *, times: int, every_s: float) -> list[dict[str, Any]]:
    """What is logged while it fails so often, and then works."""
    now = [100.0]
    failures = FailuresInARow(seconds=lambda: now[0], queue="payments")
    with capture_logs() as lines:
        for _ in range(times):
            try:
                raise error
            except Exception as caught:  # noqa: BLE001  as a poll does
                failures.failed(caught)
            now[0] += every_s
        failures.went_well()
        failures.went_well()
    return [dict(line) for line in lines]


def test_a_database_that_is_away_for_an_hour_is_some_seventy_lines_without_a_traceback() -> None:
    *lines, end = lines_of(AWAY, times=18_000, every_s=0.2)
    assert {line["event"] for line in lines} == {"poller.database_unavailable"}
    assert not [line for line in lines if "exc_info" in line]
    times = [line["for_s"] for line in lines]
    assert times[:5] == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert all(after - before <= GAP_MAX_S + 0.3 for before, after in pairwise(times))
    assert len(lines) < 70
    assert lines[0]["failures"] == 1
    assert lines[1]["failures"] == 6
    assert end == {
        "event": "poller.works_again",
        "log_level": "info",
        "queue": "payments",
        "failures": 18_000,
        "for_s": 3600.0,
    }


def test_anything_else_comes_with_its_traceback_as_rarely() -> None:
    *lines, _ = lines_of(ValueError("a bug"), times=300, every_s=0.2)
    assert {line["event"] for line in lines} == {"poller.failed"}
    assert all(line["exc_info"] for line in lines)
    assert len(lines) == 7


def test_what_went_well_is_no_line() -> None:
    with capture_logs() as lines:
        FailuresInARow().went_well()
    assert not lines
