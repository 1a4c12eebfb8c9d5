"""What survives a SIGKILL, what no statement can rewrite, and how the process starts and ends."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from devstack.places import free_port
from devstack.redis_server import START_MAX_S
from simulator.database import APPEND_ONLY
from tests.providers.stopwatch import Stopwatch
from tests.simulator.driving import (
    ANSWER_S,
    ROOT,
    Merchant,
    SimulatorProcess,
    eventually,
    new_reference,
    on_the_wire,
    seeds,
)


@contextmanager
def running(store: Path, port: int = 0) -> Iterator[tuple[SimulatorProcess, Merchant]]:
    process = SimulatorProcess("--store", str(store), *seeds("collection"), port=port)
    try:
        with requests.Session() as session:
            yield process, Merchant(process.url, session=session)
    finally:
        process.kill()


def test_a_sigkill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    store = tmp_path / "simulator.sqlite3"
    paid, failed, waiting = new_reference(), new_reference(), new_reference()
    # Of the ports that no client gets: it must be free for the second process too.
    with running(store, free_port()) as (process, merchant):
        merchant.pay(paid)
        merchant.pay(failed, msisdn="46733123451")
        merchant.pay(waiting, msisdn="46733123454")
        merchant.admin("POST", "clock", {"advance_s": 20})
        before = [merchant.seen(view) for view in ("ledger", "payments", "requests")]
        token, port = merchant.token, process.port
        process.kill()
    with running(store, port) as (_, merchant):
        merchant._token = token
        assert [merchant.seen(view) for view in ("ledger", "payments", "requests")] == before
        assert [merchant.status(one) for one in (paid, failed, waiting)] == [
            "SUCCESSFUL",
            "FAILED",
            "PENDING",
        ]
        assert merchant.pay(paid).status_code == 409
        merchant.admin("POST", "clock", {"advance_s": 15})
        assert merchant.status(waiting) == "SUCCESSFUL", "the clock went on from where it was"
        assert merchant.admin("GET", "summary")["movements_by_reference_max"] == 1


def test_faults_and_settings_end_with_the_process(tmp_path: Path) -> None:
    with running(tmp_path / "store") as (_, merchant):
        merchant.fault("refuse_400", times=None)
        merchant.set(approval_delay_s=99)
    with running(tmp_path / "store") as (_, merchant):
        assert merchant.admin("GET", "faults") == {"data": []}
        assert merchant.admin("GET", "settings")["approval_delay_s"] == 0


def test_the_evidence_cannot_be_changed_or_deleted(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with running(store) as (_, merchant):
        reference = new_reference()
        merchant.pay(reference, headers={"X-Callback-Url": "http://127.0.0.1:1/"})
        path = f"/collection/v1_0/requesttopay/{reference}/deliverynotification"
        merchant.call(
            "POST", path, headers=merchant.headers, json={"notificationMessage": "thanks"}
        )
        eventually(lambda: merchant.seen("callbacks"))
        with closing(sqlite3.connect(store, isolation_level=None)) as database:
            for table in APPEND_ONLY:
                assert database.execute(f"SELECT count(*) FROM {table}").fetchone() != (0,)  # noqa: S608 - names of our own
                with pytest.raises(sqlite3.IntegrityError, match=f"{table} is append-only"):
                    database.execute(f"DELETE FROM {table}")  # noqa: S608 - names of our own
                with pytest.raises(sqlite3.IntegrityError, match=f"{table} is append-only"):
                    database.execute(f"UPDATE {table} SET at = 0")  # noqa: S608 - names of our own
        assert merchant.movements(reference) == 1


def test_a_second_movement_would_be_shown(tmp_path: Path) -> None:
    """The ledger must be able to show a second movement, so no constraint may forbid one."""
    store = tmp_path / "store"
    with running(store) as (_, merchant):
        merchant.pay(new_reference())
        with closing(sqlite3.connect(store, isolation_level=None)) as database:
            columns = [row[1] for row in database.execute("PRAGMA table_info(movements)")][1:]
            names = ", ".join(columns)
            database.execute(f"INSERT INTO movements ({names}) SELECT {names} FROM movements")  # noqa: S608 - names of our own
        summary = merchant.admin("GET", "summary")
        assert summary["movements_by_reference_max"] == 2
        assert summary["movements_by_external_id_max"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_once_with_a_call_hanging_and_a_connection_open(number: int) -> None:
    process = SimulatorProcess(*seeds("collection"))
    with requests.Session() as session:
        merchant = Merchant(process.url, session=session)
        merchant.fault("accept_then_hang", parameters={"delay_s": 60})
        token = merchant.token
        other = Merchant(process.url, _token=token)

        def hang() -> None:
            with other.session, pytest.raises(requests.ConnectionError):
                other.pay()

        caller = threading.Thread(target=hang)
        caller.start()
        eventually(lambda: merchant.admin("GET", "summary")["accepted"] == 1)
        with Stopwatch() as watch:
            os.kill(process._process.pid, number)
            assert process._process.wait(timeout=ANSWER_S) == 0
        assert watch.awake_s < 2
        caller.join()
    assert process._process.communicate()[0] == b""


def test_a_hung_call_takes_nobody_elses_place() -> None:
    process = SimulatorProcess(*seeds("collection"))
    try:
        with requests.Session() as session:
            merchant = Merchant(process.url, session=session)
            merchant.fault("hang", times=None, parameters={"delay_s": 60})
            callers = [_open_call(merchant) for _ in range(40)]
            try:
                assert merchant.request_token().status_code == 200
                assert merchant.ask(new_reference()).status_code == 404
            finally:
                for caller in callers:
                    caller.close()
    finally:
        process.kill()


def _open_call(merchant: Merchant) -> socket.socket:
    host, port = merchant.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 5)
    connection.sendall(b"POST /collection/v1_0/requesttopay HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "0", "--seed-account", "collection:key"], "PRODUCT:SUBSCRIPTION_KEY"),
        (["--port", "0", "--seed-account", "cards:a:b:c"], "PRODUCT:SUBSCRIPTION_KEY"),
        (
            [
                "--port",
                "0",
                "--seed-account",
                "collection:a:user:k1",
                "--seed-account",
                "disbursement:b:user:k2",
            ],
            "two API keys",
        ),
        (["--port", "0", "--store", "/proc/none/store"], "cannot use the store"),
        (["--port", "0", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1:0"),
        ([], "--port"),
    ],
)
def test_a_start_that_cannot_be_says_why(options: list[str], message: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "simulator", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_MAX_S,
        check=False,
    )
    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET / SPDY/3\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET http://host/_admin/health? HTTP/1.0\r\n\r\n", 200),
        (b"GET /_admin/health HTTP/1.1\r\nConnection: close\r\n\r\n", 200),
    ],
)
def test_the_server_takes_http_and_refuses_what_is_none(
    merchant: Merchant, sent: bytes, status: int
) -> None:
    host, port = merchant.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(sent)
        line = connection.makefile("rb").readline()
    assert line.startswith(b"HTTP/1.1 %d " % status)


def test_a_client_that_waits_for_100_continue_gets_it(merchant: Merchant) -> None:
    host, port = merchant.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(
            b"POST /_admin/reset HTTP/1.1\r\nContent-Length: 2\r\n"
            b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(b"{}")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_answers_in_full_arrive_with_their_length(merchant: Merchant) -> None:
    raw = on_the_wire(merchant, "GET", "/nowhere")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
