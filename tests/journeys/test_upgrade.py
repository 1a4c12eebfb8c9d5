"""A new version under load: migrate first, then reload and replace. No request fails.

As on one machine with deploy/systemd: `current` is a link to a release, and SIGHUP follows it.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from alembic.script import ScriptDirectory

from devstack.places import free_port
from devstack.programs import ROOT, Programs, await_api, await_worker
from devstack.servers import Servers
from devstack.stack import Stack
from devstack.supervisor import Command, Process, wait_until
from tests.journeys.gateway import PATIENCE_S, Gateway, Paid
from tests.journeys.referee import assert_all_charged_once, assert_one_payment_a_key

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CLIENTS = 4
# Between two requests of a client: it limits the payments, as each is checked at the end.
PAUSE_S = 0.2
# Requests before, between and after the steps, so that each step has some under way.
ENOUGH = 30
PARTS = ("payments_app", "migrations", "celery_worker.py", "gunicorn.conf.py")
WSGI = """
from payments_app import create_app

app = create_app()


@app.after_request
def say_which(response):
    response.headers["X-Release"] = {release!r}
    return response
"""
EXPAND = """
from alembic import op

revision = {revision!r}
down_revision = {before!r}


def upgrade():
    op.execute("ALTER TABLE payments ADD COLUMN note text NOT NULL DEFAULT ''")


def downgrade():
    op.execute("ALTER TABLE payments DROP COLUMN note")
"""


class Machine:
    """Two releases, and the link to the current one."""

    def __init__(self, home: Path, stack: Stack) -> None:
        self.link = home / "current"
        self.stack = stack
        self.old, self.new = (self._release(home / name) for name in ("old", "new"))
        self._add_migration(self.new)
        self.link.symlink_to(self.old)

    def go_on(self) -> None:
        """`ln -sfn`: switch the link to the new release, in one step."""
        beside = self.link.with_name("next")
        beside.symlink_to(self.new)
        beside.replace(self.link)

    def current(self, command: Command, *more: str) -> Command:
        """The command, run from the current release."""
        arguments = [*command.arguments, *more]
        return replace(command, directory=self.link, arguments=arguments)

    def migrate(self) -> None:
        """`flask db upgrade`, of the new release."""
        command = Programs(self.stack.environment).beat("migrate")
        python = command.arguments[0]
        done = os.spawnve(  # noqa: S606  our own
            os.P_WAIT,
            "/bin/sh",
            ["sh", "-c", f"cd {self.new} && exec {python} -m flask --app wsgi db upgrade"],
            dict(command.environment),
        )
        assert done == 0

    def _release(self, folder: Path) -> Path:
        folder.mkdir()
        for name in PARTS:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, folder / name)
        (folder / "wsgi.py").write_text(WSGI.format(release=folder.name))
        return folder

    def _add_migration(self, release: Path) -> None:
        (head,) = ScriptDirectory(str(release / "migrations")).get_heads()
        revision = f"{int(head) + 1:04d}"
        file = release / f"migrations/versions/{revision}_note.py"
        file.write_text(EXPAND.format(revision=revision, before=head))


@pytest.fixture
def machine(stack_factory: partial[Stack], tmp_path: Path) -> Iterator[Machine]:
    settings = {"RATE_LIMIT_DEFAULT": "1000000 per minute"}
    with stack_factory(workers=1, settings=settings) as stack:
        yield Machine(tmp_path, stack)


def test_a_new_version_takes_over_under_load_and_no_request_fails(
    machine: Machine, servers: Servers
) -> None:
    programs, port = Programs(machine.stack.environment), free_port()
    url = f"http://127.0.0.1:{port}"
    gateway = Gateway(machine.stack)
    gateway.url = f"{url}/api/v1/payments"
    chdir = ("--chdir", str(machine.link))
    api = servers.supervisor.start(
        replace(machine.current(programs.api(port=port, workers=2), *chdir), name="upgraded-api")
    )
    await_api(api, url)
    with load(gateway) as told:
        await_more(told)
        machine.migrate()
        # The old version on the new schema is ready, and accepts payments.
        assert requests.get(f"{url}/health/ready", timeout=10).status_code == 200
        await_more(told)
        machine.go_on()
        os.kill(api.pid, signal.SIGHUP)
        await_new(told)
        new_worker = servers.supervisor.start(machine.current(programs.worker("worker-new")))
        await_worker(new_worker, machine.stack.redis.url)
        await_more(told)
        old_worker = machine.stack.processes["worker-1"]
        old_worker.terminate()
        await_more(told)
    end(api, new_worker, after=partial(judge, gateway, told))
    assert old_worker.exit_code == 0


Told = list[tuple[Paid | str, str]]


@contextmanager
def load(gateway: Gateway) -> Iterator[Told]:
    """Clients that send each order once, on a new connection; the answers with their release."""
    told: Told = []
    stop = threading.Event()

    def client() -> None:
        while not stop.wait(PAUSE_S):
            order, key = gateway.order(), str(uuid4())
            try:
                answer = gateway.send(order, key)
            except requests.RequestException as error:
                told.append((repr(error), ""))
                continue
            release = answer.headers["X-Release"]
            paid = Paid(key, order, answer.content) if answer.status_code == 201 else answer.text
            told.append((paid, release))

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    try:
        yield told
    finally:
        stop.set()
        for thread in clients:
            thread.join(PATIENCE_S)


def await_more(told: Told) -> None:
    wanted = len(told) + ENOUGH
    wait_until(lambda: len(told) >= wanted, what="no load", limit_s=PATIENCE_S)


def await_new(told: Told) -> None:
    """Wait until only the new release answers."""
    wait_until(
        lambda: {release for _, release in told[-ENOUGH:]} == {"new"},
        what="the new release does not answer",
        limit_s=PATIENCE_S,
    )


def judge(gateway: Gateway, told: Told) -> None:
    failed = [said for said, _ in told if isinstance(said, str)]
    assert failed == []
    assert set(Counter(release for _, release in told)) == {"old", "new"}
    payments = [paid for paid, _ in told if isinstance(paid, Paid)]
    gateway.await_end(*payments)
    assert_one_payment_a_key(gateway, *payments[::20])
    assert_all_charged_once(gateway, payments, looked_at=10)


def end(*processes: Process, after: partial[None]) -> None:
    """End the processes that were started beside the stack, whether or not `after` fails."""
    try:
        after()
    finally:
        for process in processes:
            process.terminate()
