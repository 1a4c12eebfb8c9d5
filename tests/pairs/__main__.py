"""`python -m tests.pairs`: play every pair and write the tables of docs/pairs.md anew."""

from __future__ import annotations

import logging
import sys

import click
import structlog
from cryptography.fernet import Fernet

from devstack.servers import Servers
from payments_app import create_app
from payments_app.settings import Settings
from tests.pairs.page import PAGE, tables_of, with_tables
from tests.pairs.playing import Stage, play_all
from tests.providers.mtn_rig import MtnRig


@click.command()
def main() -> None:
    """Write docs/pairs.md. Exit status: 1 if a pair breaks a promise."""
    with Servers() as servers, MtnRig() as rig:
        name = servers.new_database()
        settings = Settings.from_env(
            {
                "DATABASE_URL": servers.postgres.application_url(name),
                "MIGRATION_DATABASE_URL": servers.postgres.owner_url(name),
                "REDIS_URL": servers.redis.url,
                "SECRET_KEYS": Fernet.generate_key().decode(),
            }
        )
        app = create_app(settings)
        quiet = structlog.make_filtering_bound_logger(logging.CRITICAL)
        structlog.configure(wrapper_class=quiet)
        with Stage.set_up(app, rig.account()) as stage:
            outcomes = play_all(stage)
    broken = {pair: outcome for pair, outcome in outcomes.items() if outcome.fault}
    for pair, outcome in broken.items():
        click.secho(f"{outcome.fault} {outcome.told}, moved {outcome.moved}: {pair}", fg="red")
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), tables_of(outcomes)), "utf-8")
    click.echo(f"{len(outcomes)} pairs, {len(broken)} broken: {PAGE}")
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
