"""Each log line is one event with its ids. Phone numbers and secrets in it are masked."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from payments_app.kernel import tracing

# A run of digits that could be an MSISDN or a national number, and is not part of an id such as
# a UUID.
_NUMBER: Final = re.compile(
    r"(?<![0-9A-Za-z.-])(?:\+|%2B|00|0)?[1-9][0-9]{5,11}([0-9]{3})(?![0-9A-Za-z-])", re.IGNORECASE
)
# The same in groups: +256 772 123 456. A date begins with four digits, so it does not match.
_GROUPED: Final = re.compile(
    r"(?<![0-9A-Za-z.:-])(?:\+|%2B|00|0)?[1-9][0-9]{0,2}(?:[ -][0-9]{2,6}){2,4}(?![0-9A-Za-z:-])",
    re.IGNORECASE,
)
_GROUPED_DIGITS_MIN: Final = 9
_SECRET: Final = re.compile(
    r"(mara_(?:live|test)_[0-9A-Za-z]{4}|whsec_)[0-9A-Za-z_+/=]+"
    r"|(Bearer|Basic)\s+[^\s'\",}]+"
    # The password in a URL.
    r"|(://)[^\s/@]*:[^\s/]+(?=@)",
    re.IGNORECASE,
)
# Our own integers are smaller; one from here on could be a phone number.
_INTEGER_MIN: Final = 10**9
# Our own fields that are numbers, ids or constant words. They are not masked.
_OURS: Final = frozenset({"timestamp", "level", "logger", "event_id", "duration_ms", "status"})
# The length of a UUID. The masked form of strings up to this length is cached.
_WORD_MAX: Final = 36
# These loggers write a line for each notification or internal step; our own lines give the results.
_TALKERS: Final = (
    "alembic.runtime.plugins",
    "celery.app.trace",
    # One line a second.
    "celery.beat",
    "celery.worker.strategy",
    # SQLAlchemy's pool logs under the name of our subclass's module.
    "payments_app.kernel.pool",
)


def configure_logs(*, level: str, log_format: str) -> None:
    """Send all logs of this process, libraries' included, to stderr in one format."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        tracing.stamp,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Drop events below the level at the call, before the processors run.
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    render: Processor = (
        structlog.processors.JSONRenderer(serializer=_json)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
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


def _json(event: EventDict, default: Callable[[Any], Any], **_options: Any) -> str:
    try:
        line = orjson.dumps(event, default=default)
    except TypeError:
        # Half of a surrogate pair, or a key that is not a string.
        line = None
    # Some readers end a line at U+2028, and some can't read non-ASCII text: json escapes both.
    return line.decode() if line and line.isascii() else json.dumps(event, default=default)


def mask(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask phone numbers and credentials in all values of a line, nested ones included."""
    for name, value in event.items():
        # structlog's own internal names begin with an underscore.
        if name not in _OURS and not name.startswith("_"):
            event[name] = _masked_value(value)
    return event


def masked(text: str) -> str:
    """The text with possible phone numbers cut to their last three digits, and without secrets."""
    text = _SECRET.sub(lambda found: f"{found[1] or found[2] or found[3]}…", text)
    text = _NUMBER.sub(lambda found: f"***{found[1]}", text)
    return _GROUPED.sub(_masked_groups, text)


# Events, routes and ids repeat, so their masked form is cached.
_masked_word: Final = lru_cache(maxsize=2048)(masked)


def _masked_groups(found: re.Match[str]) -> str:
    digits = "".join(character for character in found[0] if character.isdigit())
    return f"***{digits[-3:]}" if len(digits) >= _GROUPED_DIGITS_MIN else found[0]


def _masked_value(value: object) -> object:
    match value:
        case None | bool() | float() | UUID():
            return value
        case int():
            return masked(str(value)) if abs(value) >= _INTEGER_MIN else value
        case str():
            return _masked_word(value) if len(value) <= _WORD_MAX else masked(value)
        case dict():
            return {masked(str(name)): _masked_value(inner) for name, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_masked_value(inner) for inner in value]
        case _:
            # The renderer would write its repr() anyway.
            return masked(repr(value))
