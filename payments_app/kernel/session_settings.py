"""What a session of PostgreSQL has from its first statement on, whatever was set for its role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import make_url

# What our statements rely on in a session. As options of the connection these go before what
# `ALTER ROLE … SET` and `ALTER DATABASE … SET` say; a role may say that of itself.
SESSION: Final[Mapping[str, str]] = {
    # PostgreSQL looks into pg_catalog first, and here last into a session's temporary tables.
    "search_path": "public,pg_temp",
    # Nobody's rows, until a transaction says whose.
    "maramoja.tenant": "",
    "row_security": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "exit_on_error": "off",
    # The pool keeps connections that do nothing.
    "idle_session_timeout": "0",
    # Before PostgreSQL 18 a plan by index may cost so much on paper that the server compiles it
    # first, which takes many times as long as the statement.
    "jit": "off",
    # In what form values go over the wire, and how the server reads a text in quotes.
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
}
CLIENT_ENCODING: Final = "utf8"
# A statement that takes longer than this is a fault of ours: end it, the client may retry.
STATEMENT_TIMEOUT_MS: Final = 15_000
# Nothing waits for a row longer than a client would.
LOCK_TIMEOUT_MS: Final = 3_000
TIMEOUTS: Final[Mapping[str, str]] = {
    "statement_timeout": str(STATEMENT_TIMEOUT_MS),
    "lock_timeout": str(LOCK_TIMEOUT_MS),
    "idle_in_transaction_session_timeout": "30000",
}
# A stronger word than `on`, such as `remote_apply`, stays.
_CONFIRM_COMMITS: Final = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
)


def asking_for(settings: Mapping[str, str], url: str) -> dict[str, str]:
    """The arguments of a connection to `url` that has these settings, in libpq's form.

    What else the address asks for in its `options`, such as a role, it gets too.
    """
    asked = make_url(url).query.get("options", "")
    escaped = ((name, value.replace(" ", "\\ ")) for name, value in settings.items())
    ours = (f"-c {name}={value}" for name, value in escaped)
    options = (*((asked,) if isinstance(asked, str) and asked else asked), *ours)
    return {"options": " ".join(options), "client_encoding": CLIENT_ENCODING}


def confirm_commits(raw: Any, _entry: object = None) -> None:
    """Have this new connection's commits wait for the disk, also where its role says otherwise."""
    raw.execute(_CONFIRM_COMMITS)
