"""schemathesis against the real app over HTTP: all checks, a fixed seed, no failures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from tests.api.http_caller import PAYMENTS, HttpCaller, served
from tests.nobodys_addresses import NOBODYS_URL

ROOT = Path(__file__).parents[2]
SEED = 20260131
EXAMPLES_MAX = 20
# The number of examples bounds the run: some 15 s on two idle cores. This is for busy ones.
TIMEOUT_S = 240


@pytest.fixture
def address(app: Flask) -> Iterator[str]:
    """The URL of the app."""
    with served(app) as url:
        yield url


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 30)
def test_it_finds_nothing(caller: HttpCaller, address: str, tmp_path: Path) -> None:
    payment = caller.pay()
    caller.pay()
    endpoints = "/api/v1/webhook-endpoints"
    endpoint = caller.send("POST", endpoints, json={"url": NOBODYS_URL}).get_json()
    delivery = caller.send("POST", f"{endpoints}/{endpoint['id']}/test").get_json()
    cursor = caller.get(f"{PAYMENTS}?limit=1").get_json()["next_cursor"]
    program = Path(sys.executable).with_name("schemathesis")

    done = subprocess.run(
        [
            program,
            "run",
            f"{address}/openapi.json",
            f"--header=X-API-Key: {caller.key.key}",
            f"--seed={SEED}",
            f"--max-examples={EXAMPLES_MAX}",
            "--checks=all",
            # It judges the machine's speed.
            "--suppress-health-check=too_slow",
            "--continue-on-failure",
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.api.schemathesis_hooks",
            "FUZZ_TENANT": caller.tenant.slug,
            "FUZZ_PAYMENT_ID": payment["id"],
            "FUZZ_ENDPOINT_ID": endpoint["id"],
            "FUZZ_DELIVERY_ID": delivery["id"],
            "FUZZ_CURSOR": cursor,
            "FUZZ_URL": NOBODYS_URL,
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    # Most of the cases that were meant to be accepted were accepted.
    assert len(caller.listed("limit=100")) > 20
