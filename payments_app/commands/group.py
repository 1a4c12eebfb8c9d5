"""Common behaviour of all commands: --json, one-line errors, exit code 1, an example in --help."""

from __future__ import annotations

import getpass
import os
import re
import socket
from typing import Any, Final, NoReturn

import click
from flask.cli import AppGroup, FlaskGroup
from psycopg.errors import UndefinedTable
from sqlalchemy.exc import DBAPIError

from payments_app.audit.origin import Origin, begin_at
from payments_app.commands.report import Lines, Report, as_json
from payments_app.kernel.errors import FieldsInvalid, GatewayError

DATABASE_UNAVAILABLE: Final = (
    "database_unavailable",
    "The database didn't do it. Is DATABASE_URL right, and is PostgreSQL up?",
)
DATABASE_NOT_MIGRATED: Final = (
    "database_not_migrated",
    "The database has no tables of ours yet: run flask db upgrade.",
)


class GatewayCommand(click.Command):
    """A command whose function returns a Report, or raises GatewayError."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        """`example`: a command line for --help."""
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.append(
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document.")
        )

    def invoke(self, ctx: click.Context) -> None:
        """Run the command and print its report."""
        wants_json = bool(ctx.params.pop("as_json"))
        begin_at(Origin(source=socket.gethostname()))
        try:
            report = super().invoke(ctx)
            if isinstance(report, Lines):
                report.write(wants_json=wants_json)
                return
        except FieldsInvalid as error:
            _fail(error.code, _told_fields(error), wants_json=wants_json)
        except GatewayError as error:
            _fail(error.code, error.detail, wants_json=wants_json)
        except DBAPIError as error:
            # SQLAlchemy's message holds the statement with its values.
            _fail(*_database_problem(error), wants_json=wants_json)
        if not isinstance(report, Report):
            raise TypeError(f"{ctx.command_path} returned no Report")
        click.echo(report.as_json() if wants_json else as_typed(report.text))
        if not report.well:
            ctx.exit(1)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Add the example, which must not be wrapped."""
        super().format_epilog(ctx, formatter)
        if self.example:
            with formatter.section("Example"):
                formatter.write(f"  {as_typed(self.example)}\n")


class GatewayGroup(AppGroup):
    """A group of GatewayCommands, each run in the app's context."""

    command_class = GatewayCommand


class TopLevel(AppGroup):
    """The groups under `flask`. For a misspelt name, Flask itself suggests no other one."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name. Raises NoSuchCommand with suggestions for a misspelt name."""
        if (found := super().get_command(ctx, cmd_name)) is not None:
            return found
        known = ctx.command.list_commands(ctx) if isinstance(ctx.command, click.Group) else ()
        slip = click.NoSuchCommand(cmd_name, possibilities=known, ctx=ctx)
        if slip.possibilities:
            raise slip
        return None


def as_typed(text: str) -> str:
    """The text with `flask …` replaced by what the operator typed, ready to paste."""
    root = click.get_current_context().find_root()
    if not isinstance(root.command, FlaskGroup):
        return text
    names = "|".join(map(re.escape, root.command.list_commands(root)))
    return re.sub(rf"\bflask (?=(?:{names})\b)", lambda _: f"{root.info_name} ", text)


def actor() -> str:
    """The operator's name for the audit trail."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        # In a container, a user id may have no name.
        return f"cli:uid-{os.getuid()}"


def _fail(code: str, detail: str, *, wants_json: bool) -> NoReturn:
    problem = {"error": {"code": code, "detail": detail}}
    told = as_json(problem) if wants_json else as_typed(f"error: {code}: {detail}")
    click.echo(told, err=True)
    raise SystemExit(1)


def _told_fields(error: FieldsInvalid) -> str:
    return "; ".join(f"{name} {', '.join(wrong)}" for name, wrong in error.errors.items())


def _database_problem(error: DBAPIError) -> tuple[str, str]:
    return DATABASE_NOT_MIGRATED if isinstance(error.orig, UndefinedTable) else DATABASE_UNAVAILABLE
