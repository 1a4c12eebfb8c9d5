"""The stack under test: two of each process that may run twice; servers with durable writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.plan import Plan
from devstack.places import free_port
from devstack.programs import await_api, await_simulator
from devstack.redis_server import RedisServer
from devstack.servers import Servers
from devstack.stack import Stack

INJECTED: Final = Path(__file__).with_name("injected")
# Rate limits must refuse no request: a run tests money, not limits.
_NO_LIMIT: Final = "1000000 per minute"


class RedislessStack(Stack):
    """A stack whose programs are configured with a Redis address where no server listens."""

    def await_ready(self) -> None:
        """Do not wait for workers: without a broker a worker never reports that it is ready."""
        # The stack's Redis, which only the migrations' settings have used.
        self.redis.stop()
        for name, process in self.processes.items():
            if name == "simulator":
                await_simulator(process)
            elif name == "api":
                await_api(process, self.api_url)


@dataclass(frozen=True, slots=True)
class Stage:
    """The running stack, its broker (None in a run without Redis), and the clock files' folder."""

    stack: Stack
    broker: RedisServer | None
    clocks: Path


@contextmanager
def set_stage(plan: Plan, clocks: Path) -> Iterator[Stage]:
    """Start everything, with a PostgreSQL that fsyncs, and stop it afterwards."""
    with Servers(durable=True) as servers:
        broker = servers.new_redis("broker") if plan.redis else None
        make = Stack if plan.redis else RedislessStack
        with make(
            workers=2,
            celery_workers=2,
            beats=2,
            settings=_settings(broker, clocks),
            servers=servers,
        ) as stack:
            yield Stage(stack, broker, clocks)


def _settings(broker: RedisServer | None, clocks: Path) -> Mapping[str, str]:
    if broker is not None:
        # Locks, limits and tokens in one Redis, notifications in another: each can be lost alone.
        reached = {"CELERY_BROKER_URL": broker.url}
    else:
        reached = {"REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    return {
        "RATE_LIMIT_DEFAULT": _NO_LIMIT,
        "PYTHONPATH": str(INJECTED),
        "CHAOS_CLOCKS": str(clocks),
        **reached,
    }
