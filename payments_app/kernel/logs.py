"""A log line is one event with its ids; no whole phone number and no secret gets through."""

from __future__ import annotations

import logging
import re
import sys
from typing import Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# A run of digits that could be an MSISDN and isn't part of an id such as a UUID.
_NUMBER: Final = re.compile(r"(?<![0-9A-Za-z.-])\+?[1-9][0-9]{5,11}([0-9]{3})(?![0-9A-Za-z-])")
_SECRET: Final = re.compile(
    r"(mara_(?:live|test)_[0-9A-Za-z]{4})[0-9A-Za-z_]+|(Bearer|Basic)\s+\S+", re.IGNORECASE
)
# Our own fields that are numbers or ids, not text that somebody wrote.
_OURS: Final = frozenset({"timestamp", "level", "logger", "event_id", "duration_ms", "status"})
# They tell of each doorbell and of each of their own parts; ours says what came of it.
_TALKERS: Final = ("alembic.runtime.plugins", "celery.app.trace", "celery.worker.strategy")


def configure_logs(*, level: str, log_format: str) -> None:
    """Send all logging of this process, libraries' included, to stderr in one form."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    render: Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer()
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for talker in _TALKERS:
        logging.getLogger(talker).setLevel(logging.WARNING)


def mask(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask numbers and credentials in whatever text a line carries."""
    for name, value in event.items():
        if name not in _OURS and isinstance(value, str):
            event[name] = masked(value)
    return event


def masked(text: str) -> str:
    """The text with possible phone numbers cut to their last three digits, and without keys."""
    text = _SECRET.sub(lambda found: f"{found[1] or found[2]}…", text)
    return _NUMBER.sub(lambda found: f"***{found[1]}", text)
