"""The settings of each PostgreSQL session from its first statement on, whatever its role sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import make_url

# Settings that our statements rely on. Given as connection options, they override what
# `ALTER ROLE … SET` and `ALTER DATABASE … SET` say (a role may change its own settings).
SESSION: Final[Mapping[str, str]] = {
    # PostgreSQL searches pg_catalog first, and with this a session's temporary tables last.
    "search_path": "public,pg_temp",
    # No tenant's rows, until a transaction sets the tenant.
    "maramoja.tenant": "",
    "row_security": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "exit_on_error": "off",
    # The pool keeps idle connections.
    "idle_session_timeout": "0",
    # Before PostgreSQL 18 the estimated cost of an index plan may be so high that the server
    # compiles it first, which takes many times as long as the statement.
    "jit": "off",
    # The text format of values, and how the server reads a quoted string.
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
}
CLIENT_ENCODING: Final = "utf8"
# A statement that takes longer than this is a bug of ours: end it; the client may retry.
STATEMENT_TIMEOUT_MS: Final = 15_000
# No statement waits for a locked row longer than a client would.
LOCK_TIMEOUT_MS: Final = 3_000
TIMEOUTS: Final[Mapping[str, str]] = {
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": "30000",
}
# A stronger value than `on`, such as `remote_apply`, is kept.
_CONFIRM_COMMITS: Final = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)


def asking_for(settings: Mapping[str, str], url: str) -> dict[str, str]:
    """The arguments of a connection to `url` that has these settings, in libpq's form.

    Other settings in the URL's own `options`, such as a role, are kept.
    """
    asked = make_url(url).query.get("options", "")
    escaped = ((name, value.replace(" ", "\\ ")) for name, value in settings.items())
    ours = (f"-c {name}={value}" for name, value in escaped)
    options = (*((asked,) if isinstance(asked, str) and asked else asked), *ours)
    return {"options": " ".join(options), "client_encoding": CLIENT_ENCODING}


def confirm_commits(raw: Any, _entry: object = None) -> None:
    """Have this new connection's commits wait for the disk, even if its role's setting differs."""
    raw.execute(_CONFIRM_COMMITS)
