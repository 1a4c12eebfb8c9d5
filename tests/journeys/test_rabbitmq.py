"""RabbitMQ instead of Redis as the broker: it only carries notifications, and may be down.

Skipped with a reason where no rabbitmq-server is installed (Debian: apt install rabbitmq-server).
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from functools import partial

import pytest
from amqp import NotFound
from kombu import Connection

from devstack.rabbit_server import RabbitServer, rabbitmq_program
from devstack.servers import Servers
from devstack.stack import Stack
from devstack.supervisor import wait_until
from payments_app.kernel.jobs import BROKER_BACKOFF_S
from payments_app.worker.celery_app import BROKER_TIMEOUT_S, DROP_OLD, PAYMENTS
from tests.docs.pages import blocks_of
from tests.journeys.gateway import PATIENCE_S, Gateway, Paid
from tests.journeys.referee import assert_all_charged_once, assert_one_payment_a_key

pytestmark = [
    pytest.mark.skipif(rabbitmq_program() is None, reason="RABBITMQ IS NOT TESTED: none here"),
    pytest.mark.slow,
]
# Celery's consumer waits longer after each failure to reach its broker.
RECONNECT_MAX_S = 90.0
# A machine that does not run the gateway meanwhile delays a round: then once more.
ROUNDS_MAX = 3


@pytest.fixture(scope="module")
def rabbit(servers: Servers) -> Iterator[RabbitServer]:
    server = RabbitServer(servers.supervisor, servers.home / "rabbitmq")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def as_the_page_says(rabbit: RabbitServer) -> str:
    """CELERY_BROKER_URL of the user that docs/deploy.md creates, with the rights that it gives."""
    (block,) = (one for one in blocks_of("docs/deploy.md") if "rabbitmqctl" in one.text)
    for line in block.text.splitlines():
        sudo, program, *words = shlex.split(line)
        assert (sudo, program) == ("sudo", "rabbitmqctl")
        rabbit.control(*words)
    # For the tests' own queries of the queues.
    rabbit.control("set_permissions", "--vhost", "maramoja", "guest", ".*", ".*", ".*")
    return f"amqp://maramoja:PASSWORD@127.0.0.1:{rabbit.port}/maramoja"


@pytest.fixture(scope="module")
def gateway(as_the_page_says: str, stack_factory: partial[Stack]) -> Iterator[Gateway]:
    settings = {"CELERY_BROKER_URL": as_the_page_says, "RATE_LIMIT_DEFAULT": "1000000 per minute"}
    with stack_factory(workers=2, settings=settings) as stack:
        yield Gateway(stack)


def test_payments_are_rung_for_and_reach_their_end(gateway: Gateway, rabbit: RabbitServer) -> None:
    await_consumer(gateway, rabbit)
    api = gateway.stack.processes["api"]
    # Another test kills the broker, and may run first.
    before = len(api.log_text())
    payments = [gateway.pay() for _ in range(5)]
    gateway.await_end(*payments)
    assert_one_payment_a_key(gateway, *payments)
    assert_all_charged_once(gateway, payments, looked_at=5)
    logged = api.log_text()[before:]
    assert "notification.lost" not in logged
    assert "notification.failed" not in logged
    assert "access_refused" not in rabbit.process.log_text(), "the page's rights are too few"


def test_rings_that_nobody_takes_do_not_pile_up(gateway: Gateway, rabbit: RabbitServer) -> None:
    await_consumer(gateway, rabbit)
    with Connection(f"{rabbit.url[:-1]}maramoja") as connection:
        # RabbitMQ refuses to declare a queue with other arguments than those that it was made with.
        connection.channel().queue_declare(
            PAYMENTS, durable=True, auto_delete=False, arguments=DROP_OLD
        )


def test_a_killed_rabbitmq_costs_no_payment_and_is_heard_again(
    gateway: Gateway, rabbit: RabbitServer
) -> None:
    # Tasks are being run when the connection breaks: there Celery once waited for ever.
    gateway.provider.fault("slow", times=None, operation="create", parameters={"delay_s": 1.0})
    payments = [gateway.pay() for _ in range(20)]
    rabbit.kill()
    rounds: list[float] = []
    away: list[Paid] = []
    while len(rounds) < ROUNDS_MAX and (not rounds or rounds[-1] >= BROKER_TIMEOUT_S):
        if rounds:
            # Else the next round would not try the broker.
            time.sleep(BROKER_BACKOFF_S)
        longest_s, paid = longest_of(gateway, 20)
        rounds.append(longest_s)
        away += paid
    assert rounds[-1] < BROKER_TIMEOUT_S, rounds
    gateway.provider.reset()
    gateway.await_end(*payments, *away)

    rabbit.start()
    await_consumer(gateway, rabbit)
    later = [gateway.pay() for _ in range(20)]
    wait_until(lambda: waiting(rabbit)[0] == 0, what="rings are not answered", limit_s=PATIENCE_S)
    gateway.await_end(*later)
    assert_all_charged_once(gateway, [*payments, *away, *later], looked_at=10)
    worker = gateway.stack.processes["worker-1"]
    worker.terminate()
    assert worker.exit_code == 0
    worker.start()
    # Nor since its restart, nor from anything that a worker does only now and then.
    assert "access_refused" not in rabbit.process.log_text(), "the page's rights are too few"


def longest_of(gateway: Gateway, times: int) -> tuple[float, list[Paid]]:
    """How long the slowest of so many requests took, and the payments."""
    longest_s, payments = 0.0, []
    for _ in range(times):
        started = time.monotonic()
        payments.append(gateway.pay())
        longest_s = max(longest_s, time.monotonic() - started)
    return longest_s, payments


def waiting(rabbit: RabbitServer) -> tuple[int, int]:
    """How many notifications wait in the queue, and how many workers consume from it."""
    with Connection(f"{rabbit.url[:-1]}maramoja") as connection:
        try:
            found = connection.channel().queue_declare(PAYMENTS, passive=True)
        except NotFound:
            # No worker has created the queue yet.
            return 0, 0
        return found.message_count, found.consumer_count


def await_consumer(gateway: Gateway, rabbit: RabbitServer) -> None:
    wait_until(
        lambda: waiting(rabbit)[1] > 0,
        what="no worker listens",
        processes=[gateway.stack.processes["worker-1"], rabbit.process],
        limit_s=RECONNECT_MAX_S,
    )
