"""Compares webhook endpoints with their audit trail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from payments_app.audit.comparison import (
    UNTOLD,
    Comparison,
    Detail,
    Told,
    fingerprint_or_none,
    instant,
    unequal,
)
from payments_app.webhooks.endpoints import BY_TENANT, REMOVED, shown_url
from payments_app.webhooks.model import EndpointStatus

_NOT_DISABLED: Final = {"disabled_reason": None, "disabled_at": None}
_NO_PREVIOUS: Final = {"previous_secret": None, "previous_secret_until": None}


def _of_endpoint(row: Any, told: Told) -> Iterator[str]:
    added = told.of("webhook_endpoint.added")
    if len(added) != 1:
        yield f"it was added {len(added)} times"
        return
    expected: dict[str, object] = {
        "mode": added[0].get("mode", UNTOLD),
        "secret": added[0].get("fingerprint", UNTOLD),
        "deleted_at": None,
        **_NOT_DISABLED,
        **_NO_PREVIOUS,
    }
    for action, detail in told:
        expected |= _of_entry(action.rpartition(".")[2], detail)
    yield from unequal(_as_told(row), expected)


def _as_told(row: Any) -> dict[str, object]:
    """The row in the form of its audit entries, which hold no secret and no URL query."""
    return {
        **row._mapping,  # noqa: SLF001  SQLAlchemy's own name for it
        **shown_url(row.url),
        "secret": fingerprint_or_none(row.secret),
        "previous_secret": fingerprint_or_none(row.previous_secret),
    }


def _of_entry(what: str, detail: Detail) -> dict[str, object]:
    """The column values that the row has after this entry."""
    match what:
        case "added" | "changed":
            told = {name: detail[name] for name in ("event_types", "description") if name in detail}
            return {**told, **_url_by(detail), **_status_by(detail)}
        case "secret_rotated":
            return {
                "secret": detail.get("fingerprint", UNTOLD),
                "previous_secret": detail.get("previous_fingerprint", UNTOLD),
                "previous_secret_until": instant(detail.get("previous_until", UNTOLD)),
            }
        case "rewrapped":
            closed = detail.get("fingerprint", UNTOLD)
            columns = ("secret", "previous_secret")
            return {name: closed for name in columns if detail.get("column", name) == name}
        case "disabled":
            return _disabled_by(detail, detail.get("reason", UNTOLD))
        case "removed":
            removed = _disabled_by(detail, REMOVED)
            return {**removed, **_NO_PREVIOUS, "secret": None, "deleted_at": removed["disabled_at"]}
        case _:
            return {}


def _url_by(detail: Detail) -> dict[str, object]:
    """Earlier releases recorded the URL, but not whether it has a query."""
    if "url" not in detail:
        return {}
    return {"url": detail["url"], "query": detail.get("query", UNTOLD)}


def _status_by(detail: Detail) -> dict[str, object]:
    if "status" not in detail:
        return {}
    if detail["status"] == EndpointStatus.DISABLED:
        return _disabled_by(detail, BY_TENANT)
    return {"status": detail["status"], **_NOT_DISABLED}


def _disabled_by(detail: Detail, reason: object) -> dict[str, object]:
    return {
        "status": EndpointStatus.DISABLED,
        "disabled_reason": reason,
        "disabled_at": instant(detail.get("disabled_at", UNTOLD)),
    }


COMPARISONS: Final = (
    Comparison(
        table="webhook_endpoints",
        rows="webhook_endpoints",
        subject="webhook_endpoint",
        actions=(
            *("webhook_endpoint.added", "webhook_endpoint.changed", "webhook_endpoint.disabled"),
            *("webhook_endpoint.secret_rotated", "webhook_endpoint.rewrapped"),
            "webhook_endpoint.removed",
        ),
        differences=_of_endpoint,
    ),
)
