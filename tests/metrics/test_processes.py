"""Several processes export one set of metrics, whichever of them is killed."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from devstack.supervisor import wait_until
from tests.builders import PAYER
from tests.metrics.conftest import PATIENCE_S, TENANT, Installation

# Enough that each of two processes handles some.
MANY = 60
# The most connections that each gunicorn process may use.
POOL = 24

# Larger than any pid.
NOBODY = 2**22 + 1


def counted_by(folder: Path) -> set[str]:
    return {path.stem.removeprefix("counter_") for path in folder.glob("counter_*.db")}


def await_both(installation: Installation) -> None:
    """Wait until two gunicorn processes have connected, not only the first that answers."""
    wait_until(
        lambda: installation.api.total("database_pool_size") >= 2 * POOL,
        what="only one is at work",
        limit_s=PATIENCE_S,
    )


def pay_many(installation: Installation) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: installation.pay(), range(MANY)))


def kill_a_worker(installation: Installation) -> int:
    """SIGKILL one of gunicorn's processes; its pid, once another answers in its place."""
    api = installation.stack.processes["api"]
    victim, *_ = before = api.children()
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: len(api.children()) == len(before) and victim not in api.children(),
        what="none in its place",
        limit_s=PATIENCE_S,
    )
    wait_until(
        lambda: counted_by(installation.folder) == {*map(str, api.children()), "ended"},
        what="it does not count yet",
        limit_s=PATIENCE_S,
    )
    await_both(installation)
    return victim


def test_the_counts_of_both_processes_sum_up(installation: Installation) -> None:
    await_both(installation)
    before = installation.api
    pay_many(installation)
    after = installation.api

    for name in ("payments_accepted_total", "key_lock_wait_seconds_count", "accept_seconds_count"):
        assert after.total(name) - before.total(name) == MANY
    firsts = {"outcome": "first"}
    assert (
        after.total("idempotency_total", **firsts) - before.total("idempotency_total", **firsts)
        == MANY
    )
    assert counted_by(installation.folder) >= set(
        map(str, installation.stack.processes["api"].children())
    )
    assert after.total("database_pool_size") == 2 * POOL
    assert {installation.api.total("payments_accepted_total") for _ in range(10)} == {
        after.total("payments_accepted_total")
    }


def test_a_killed_process_takes_no_counts_with_it_and_leaves_no_gauge(
    installation: Installation,
) -> None:
    await_both(installation)
    pay_many(installation)
    before = installation.api

    victims = {str(kill_a_worker(installation)) for _ in range(3)}

    after = installation.api
    for name in ("payments_accepted_total", "accept_seconds_count", "accept_seconds_bucket"):
        assert after.total(name) == before.total(name), name
    assert after.total("database_pool_size") == 2 * POOL
    assert after.total("database_pool_in_use") <= 1
    left = {path.name for path in installation.folder.iterdir()}
    assert not [name for name in left if victims & set(re.split(r"[_.]", name))], left
    installation.pay()
    assert (
        installation.api.total("payments_accepted_total")
        == before.total("payments_accepted_total") + 1
    )


def test_a_file_that_was_only_just_made_is_no_trouble(installation: Installation) -> None:
    """A process that starts creates its files, then sets their size; it may die in between."""
    await_both(installation)
    before = installation.api.total("payments_accepted_total")
    empty = [installation.folder / f"{kind}_{NOBODY}.db" for kind in ("counter", "histogram")]
    for file in empty:
        file.touch()
    assert installation.api.total("payments_accepted_total") == before
    kill_a_worker(installation)
    wait_until(
        lambda: not any(file.exists() for file in empty),
        what="an empty file is still there",
        limit_s=PATIENCE_S,
    )
    assert installation.api.total("payments_accepted_total") == before


def test_a_reload_keeps_the_counts_and_a_restart_cleans_up(installation: Installation) -> None:
    api = installation.stack.processes["api"]
    await_both(installation)
    before, folder = installation.api.total("payments_accepted_total"), installation.folder
    first = set(api.children())
    os.kill(api.pid, signal.SIGHUP)
    wait_until(
        lambda: (
            counted_by(folder) == {*map(str, api.children()), "ended"}
            and not first & set(api.children())
        ),
        what="the old ones are still there",
        limit_s=PATIENCE_S,
    )
    assert installation.folder == folder
    assert installation.api.total("payments_accepted_total") == before

    api.terminate()
    assert not folder.exists()
    api.start()
    installation.stack.await_ready()
    orphan = installation.folder
    api.kill()
    assert orphan.exists()
    api.start()
    installation.stack.await_ready()
    assert not orphan.exists(), "what a killed master has left goes at the next start"
    assert installation.api.total("payments_accepted_total") == 0


def test_worker_and_beat_tell_their_own(installation: Installation) -> None:
    installation.await_rest()
    before = installation.worker
    for _ in range(5):
        installation.pay()
    installation.await_rest()

    after = installation.worker
    assert after.total("payments_final_total") - before.total("payments_final_total") == 5
    for verdict in ({"operation": "submit", "verdict": "PENDING"}, {"operation": "check"}):
        answers = "provider_answers_total"
        assert after.total(answers, **verdict) - before.total(answers, **verdict) >= 5
    assert after.total("time_to_final_seconds_count") == after.total("payments_final_total")
    assert installation.beat.total("build_info") == 1


def test_no_number_no_key_and_no_tenant_is_in_any(installation: Installation) -> None:
    told = installation.pay().json()
    stack = installation.stack
    stack.flask("tenants", "list")
    secrets = {
        *(PAYER, PAYER[3:], TENANT, installation.key, installation.key[:14]),
        *(told["id"], told["reference"], stack.environment["SECRET_KEYS"]),
        *(stack.environment["MTN_COLLECTION_API_USER"], stack.environment["DATABASE_URL"]),
    }
    for figures in (installation.api, installation.worker, installation.beat):
        assert not [secret for secret in secrets if secret in figures.text]
        assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-", figures.text)
