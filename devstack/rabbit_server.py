"""A real RabbitMQ that is our own child, if this machine has one installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from devstack.errors import StackError
from devstack.places import free_port
from devstack.supervisor import Command, Process, Supervisor, wait_until

# Erlang starts slowly, and more slowly on a machine under load.
START_MAX_S = 90.0
# Debian's server; the program on the PATH is a wrapper that drops root's rights and the environment.
_UNWRAPPED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")


def rabbitmq_program() -> str | None:
    """The server's program, or None if it is not installed."""
    return str(_UNWRAPPED) if _UNWRAPPED.exists() else shutil.which("rabbitmq-server")


class RabbitServer:
    """One RabbitMQ with its files in `home`, on a free port; it keeps the port over restarts."""

    def __init__(self, supervisor: Supervisor, home: Path) -> None:
        """Choose the ports; `start` runs the server."""
        home.mkdir(parents=True, exist_ok=True)
        self._home = home
        self.port = free_port()
        self._environment = {
            "PATH": os.defpath,
            "HOME": str(home),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"maramoja-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(home / "pid"),
            # Ignore the machine's settings: they are for its own server.
            "RABBITMQ_CONFIG_FILE": str(home / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(home / "none"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        }
        # Erlang's name server. If RabbitMQ started it, it would outlive us as a daemon.
        self._names = Process(supervisor, self._command("epmd", "epmd"))
        self.process = Process(supervisor, self._command("rabbitmq", _server_program()))

    @property
    def url(self) -> str:
        """CELERY_BROKER_URL."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Run the server and wait until it accepts connections."""
        said = self.process.log_text().count("startup complete")
        self._names.start()
        self.process.start()
        wait_until(
            lambda: self.process.log_text().count("startup complete") > said,
            what="RabbitMQ does not start",
            processes=[self.process],
            limit_s=START_MAX_S,
        )

    def control(self, *words: str) -> None:
        """Run `rabbitmqctl` with these arguments. Raises StackError with its output if it fails."""
        command = [str(Path(_server_program()).with_name("rabbitmqctl")), *words]
        done = subprocess.run(
            command,
            env=self._environment,
            cwd=self._home,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            said = f"rabbitmqctl {' '.join(words)}: {done.stdout}{done.stderr}"
            raise StackError(said, remedy="look at RabbitMQ's own log")

    def kill(self) -> None:
        """SIGKILL the server."""
        self.process.kill()

    def stop(self) -> None:
        """Shut down in order."""
        self.process.terminate()
        self._names.terminate()

    def _command(self, name: str, program: str) -> Command:
        return Command(
            name=name,
            arguments=[program],
            environment=self._environment,
            directory=self._home,
        )


def _server_program() -> str:
    program = rabbitmq_program()
    if program is None:
        raise StackError(
            "there is no rabbitmq-server", remedy="Debian: apt install rabbitmq-server"
        )
    return program
