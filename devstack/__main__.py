"""The command line of the stack: `python -m devstack`."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import psutil

from devstack.checkout import Checkout
from devstack.environment import Addresses, SimulatorAccount, hermetic_environment
from devstack.errors import StackError
from devstack.flask_here import TYPED_AS
from devstack.postgres_server import PostgresServer
from devstack.programs import ROOT
from devstack.report import Invitation, LiveKey, print_invitation, print_proof
from devstack.supervisor import GRACE_MAX_S, Supervisor
from devstack.up import MARKETS, TENANT, Options, Run

# Settings of the environment that replace the stack's own. Other settings reach the processes too.
_SETTINGS = (
    *("DATABASE_URL", "MIGRATION_DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "SECRET_KEYS"),
    *("PUBLIC_BASE_URL", "LOG_LEVEL", "LOG_FORMAT", "WEBHOOK_ALLOW_PRIVATE_ADDRESSES"),
    *("MTN_BASE_URL", "MTN_TARGET_ENVIRONMENT", "MTN_COLLECTION_SUBSCRIPTION_KEY"),
    *("MTN_COLLECTION_API_USER", "MTN_COLLECTION_API_KEY"),
)
VAR: Final = ROOT / "var"
# The processes end one after the other, each with its own grace time.
_DOWN_MAX_S = 6 * GRACE_MAX_S


@click.group(invoke_without_command=True)
@click.option(
    "--var",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=VAR,
    help="Where data, logs and keys are kept [default: var/ of this checkout].",
)
@click.pass_context
def main(context: click.Context, directory: Path) -> None:
    """Run Maramoja on this machine: real PostgreSQL and Redis, and every process of its own."""
    context.obj = Checkout(directory.resolve())
    if context.invoked_subcommand is None:
        context.invoke(up)


@main.command()
@click.option("--host", default="127.0.0.1", envvar="HOST_ADDRESS", show_default=True)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=8000,
    envvar="PORT",
    show_default=True,
    help="The API's port.",
)
@click.option("--no-demo", is_flag=True, help="Make no tenant and send no payment.")
@click.option("--once", is_flag=True, help="End after the demo; exit code 0 if it charged once.")
@click.pass_obj
def up(checkout: Checkout, *, host: str, port: int, no_demo: bool, once: bool) -> None:
    """Start everything and stay up until Ctrl-C (the default)."""
    given = {name: os.environ[name] for name in _SETTINGS if os.environ.get(name)}
    options = Options(host=host, port=port, given=given)
    # Ctrl-C before the end of the demo: a fault only where the demo was asked for.
    charged_once = not once
    with _plain_errors():
        checkout.claim()
        with _all_in_order(checkout) as supervisor:
            run = Run(options=options, checkout=checkout, supervisor=supervisor)
            run.start()
            charged_once = no_demo or _show(run)
            if not once:
                run.watch()
    sys.exit(0 if charged_once else 1)


@main.command()
@click.pass_obj
def down(checkout: Checkout) -> None:
    """End the stack of this checkout that runs in another terminal."""
    with _plain_errors():
        pid = checkout.running_pid()
        if pid is None:
            click.echo("nothing runs in this checkout")
            return
        os.kill(pid, signal.SIGTERM)
        psutil.wait_procs([psutil.Process(pid)], timeout=_DOWN_MAX_S)
        click.echo("ended")


@main.command()
@click.pass_obj
def reset(checkout: Checkout) -> None:
    """Delete all data of this checkout's stack."""
    with _plain_errors():
        checkout.claim()
        with Supervisor(checkout.logs, pid_directory=checkout.pids) as supervisor:
            PostgresServer(supervisor, checkout.postgres).discard()
        checkout.reset()
        click.echo("the data is gone; `make run` starts anew")


# All arguments go to flask, --help too.
@main.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def flask(checkout: Checkout, arguments: tuple[str, ...]) -> None:
    """Run `flask ARGUMENTS` with the settings of the stack that runs here.

    Settings of the environment take precedence. Without a running stack it uses addresses where
    nothing answers, which is enough for commands that need no server, such as `openapi write`.
    """
    nowhere = "postgresql://nobody@localhost:1/none"
    unreachable = Addresses(nowhere, nowhere, "redis://localhost:1/0")
    account = SimulatorAccount().settings("http://localhost:1")
    running = checkout.environment()
    given = running or hermetic_environment(unreachable, account)
    environment = {**given, **os.environ, "FLASK_APP": "wsgi", TYPED_AS: _typed_as(checkout)}
    command = [sys.executable, "-m", "devstack.flask_here", *arguments]
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if code == 1 and not running and "DATABASE_URL" not in os.environ:
        click.echo("  → nothing runs in this checkout: `make run` starts a stack", err=True)
    sys.exit(code)


def _typed_as(checkout: Checkout) -> str:
    """The command that runs `flask` from the current folder, to be pasted."""
    executable = Path(sys.executable)
    if executable.is_relative_to(Path.cwd()):
        executable = executable.relative_to(Path.cwd())
    var = "" if checkout.directory == VAR else f" --var {checkout.directory}"
    return f"{executable} -m devstack{var} flask"


def _show(run: Run) -> bool:
    access = run.demo_access()
    shown = run.pay_once(access) if run.options.simulated else None
    if shown is not None:
        print_proof(shown)
    print_invitation(
        Invitation(
            api_url=run.options.url,
            tenant=TENANT,
            key=access.key,
            live_keys={
                environment: LiveKey(key, MARKETS[environment])
                for environment, key in access.live.items()
            },
            payment_id=shown.payment_id if shown else None,
            simulator_url=run.simulator_url,
            logs=run.checkout.logs,
        )
    )
    return shown is None or shown.charged_once


@contextmanager
def _all_in_order(checkout: Checkout) -> Iterator[Supervisor]:
    """Ctrl-C, SIGTERM and a closed terminal all end the block, and then the processes in order."""
    # Also SIGINT: a process that a script starts in the background ignores it by default.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    supervisor = Supervisor(checkout.logs, pid_directory=checkout.pids)
    try:
        yield supervisor
    except KeyboardInterrupt:
        click.echo("\nending …")
    finally:
        # A second Ctrl-C must not leave processes behind; each has its own time limit.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        supervisor.close()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Print one line with the error and one with the remedy, instead of a stack trace."""
    try:
        yield
    except StackError as error:
        click.secho(f"✗ {error}", fg="red", err=True)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        click.secho(f"✗ {error.filename}: {error.strerror}", fg="red", err=True)
        click.secho("  → free some disk, or make var/ writable for you", fg="red", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
