"""Refuses a misspelt Idempotency-Key: if it were ignored, a retry would charge twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from typing import Final

from flask import g, request

from payments_app.api.idempotent import HEADER
from payments_app.kernel.idempotency import KeyInvalid

# RFC 9110, 9.2.1. These methods change nothing, so a key has nothing to protect.
SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))
# The server drops header names with an underscore and lists them in this one (gunicorn.conf.py).
DROPPED: Final = "HTTP_X_DROPPED_HEADERS"
_HEADERS: Final = "HTTP_"
_RIGHT: Final = "idempotencykey"
_STEM: Final = "idempot"
_ABBREVIATION: Final = re.compile(r"(^|[^a-z])idem")
# Letters that may be missing, added or wrong. No header in use is this close by chance: the nearest
# English words ("competency", "dependency") are 4 letters away.
_EDITS_MAX: Final = 3
_NAME_LENGTH_MAX: Final = 60


def refuse_near_misses() -> None:
    """Refuse an unsafe request that sends its idempotency key under a wrong name.

    Checks the names of headers and of query parameters. Raises KeyInvalid.
    """
    if request.method in SAFE_METHODS or "caller" not in g:
        return
    # In the query even the right name is wrong.
    asked = request.args if request.query_string else ()
    wrong = chain(
        (name for name in _header_names() if is_near_miss(name)),
        (name for name in asked if is_near_miss(name) or name.lower() == HEADER.lower()),
    )
    for name in wrong:
        raise KeyInvalid(
            f"The key was sent as {name[:_NAME_LENGTH_MAX]}, which is not read."
            f" Send it in the header {HEADER}."
        )


def is_near_miss(name: str) -> bool:
    """Whether this name is meant to be Idempotency-Key, but is not.

    Case is ignored. A near miss is a name whose letters contain "idempot", or one with a word that
    begins with "idem", or one whose letters, without a leading "x", are those of the right name
    with at most 3 missing, added or wrong.
    """
    # Longer names are not cached: a client could fill the memory with them.
    return _is_near_miss(name) if len(name) <= _NAME_LENGTH_MAX else _STEM in _letters(name)


@lru_cache(maxsize=1024)
def _is_near_miss(name: str) -> bool:
    lower = name.lower()
    if lower == HEADER.lower():
        return False
    letters = _letters(name)
    if _STEM in letters or _ABBREVIATION.search(lower):
        return True
    return _edits(letters.removeprefix("x"), _RIGHT) <= _EDITS_MAX


def _header_names() -> Iterator[str]:
    for variable in request.environ:
        if variable.startswith(_HEADERS):
            yield variable.removeprefix(_HEADERS).replace("_", "-").title()
    if dropped := request.environ.get(DROPPED):
        yield from (name.strip().title() for name in dropped.split(","))


def _letters(name: str) -> str:
    return "".join(one for one in name.lower() if one.isalpha())


def _edits(one: str, other: str) -> int:
    """The Levenshtein distance, or more than _EDITS_MAX if the lengths differ by more."""
    if abs(len(one) - len(other)) > _EDITS_MAX:
        return _EDITS_MAX + 1
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        previous, row = row, [number]
        for column, wanted in enumerate(other, 1):
            best = min(previous[column], row[-1], previous[column - 1] - (letter == wanted))
            row.append(best + 1)
    return row[-1]
