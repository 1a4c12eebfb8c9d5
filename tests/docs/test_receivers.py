"""The receivers of docs/webhooks.md accept real deliveries, and refuse all others."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from devstack.places import free_port
from devstack.supervisor import wait_until
from payments_app.webhooks.signature import signed_headers
from tests.docs.conftest import Site
from tests.docs.pages import blocks_of
from tests.docs.shell import PATH
from tests.webhooks.receiver import Receiver, receiving

PAGE = "docs/webhooks.md"
PROGRAMS = {"receive.py": [sys.executable], "receive.mjs": ["node"]}
STORY = ["payment.accepted PENDING", "payment.pending PENDING", "payment.successful SUCCESSFUL"]
PATIENCE_S = 60.0


def written(name: str, folder: Path) -> Path:
    """Write the page's block of this name to a file."""
    (block,) = [block for block in blocks_of(PAGE) if block.file_name == name]
    path = folder / name
    path.write_text(block.text, encoding="utf-8")
    return path


@contextmanager
def running(program: list[str], path: Path, port: int, secret: str) -> Iterator[Path]:
    """Run the program at this port; the file has its output."""
    output = path.with_suffix(".out")
    environment = {"PATH": PATH, "WEBHOOK_SECRET": secret, "HOME": os.environ.get("HOME", "/")}
    with output.open("w") as out:
        process = subprocess.Popen(
            [*program, str(path), str(port)], env=environment, stdout=out, stderr=out
        )
        try:
            # A delivery that is refused would be sent again only after seconds.
            wait_until(
                lambda: listens(port),
                what=f"nothing listens at {port}",
                limit_s=PATIENCE_S,
            )
            yield output
        finally:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def endpoint(site: Site, tenant: str, url: str) -> dict[str, Any]:
    site.key_of(tenant)
    found: dict[str, Any] = json.loads(site.flask("webhooks", "add", tenant, url, "--json"))
    return found


def pay(site: Site, tenant: str) -> None:
    headers = {"X-API-Key": site.key_of(tenant), "Idempotency-Key": str(uuid4())}
    order = {"amount": 1000, "currency": "EUR", "payer": "256772123456"}
    requests.post(site.payments, json=order, headers=headers, timeout=10).raise_for_status()


def sent(url: str, body: bytes, secret: str, *, at: float) -> int:
    headers = signed_headers([secret], message_id="msg_x", timestamp=int(at), body=body)
    return requests.post(url, data=body, headers=headers, timeout=10).status_code


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_receiver_of_the_page_takes_real_deliveries_and_nothing_else(
    site: Site, tmp_path: Path, name: str
) -> None:
    port, tenant = free_port(), f"told-{name.partition('.')[2]}"
    url = f"http://127.0.0.1:{port}/webhooks"
    secret = endpoint(site, tenant, url)["secret"]
    with running(PROGRAMS[name], written(name, tmp_path), port, secret) as output:
        pay(site, tenant)
        wait_until(
            lambda: [line for line in output.read_text().splitlines() if line in STORY] == STORY,
            what=f"the story has not come: {output.read_text()}",
            limit_s=PATIENCE_S,
        )
        body = b'{"type": "payment.successful", "data": {"status": "SUCCESSFUL"}}'
        now = time.time()
        assert sent(url, body, secret, at=now) == 204
        assert sent(url, body, secret, at=now - 600) == 400
        assert sent(url, body, "whsec_" + "A" * 43 + "=", at=now) == 400
        headers = signed_headers([secret], message_id="msg_x", timestamp=int(now), body=body)
        bent = body.replace(b"SUCCESSFUL", b"SUCCESSFUM")
        assert requests.post(url, data=bent, headers=headers, timeout=10).status_code == 400


def test_openssl_verifies_a_real_delivery_by_hand(site: Site, tmp_path: Path) -> None:
    with receiving() as receiver:
        secret = endpoint(site, "told-by-hand", receiver.url)["secret"]
        pay(site, "told-by-hand")
        wait_until(lambda: bool(receiver.received), what="nothing came", limit_s=PATIENCE_S)
    script = written("verify.sh", tmp_path)

    assert by_hand(script, receiver, secret, receiver.received[0].body) == (0, "verified\n")
    assert by_hand(script, receiver, secret, receiver.received[0].body + b" ") == (1, "refused\n")


def by_hand(script: Path, receiver: Receiver, secret: str, body: bytes) -> tuple[int, str]:
    """The script's result for the body with the headers of the first delivery."""
    (script.parent / "body").write_bytes(body)
    headers = receiver.received[0].headers
    environment = {
        "PATH": PATH,
        "WEBHOOK_SECRET": secret,
        "ID": headers["webhook-id"],
        "STAMP": headers["webhook-timestamp"],
        "SIGNATURE": headers["webhook-signature"],
    }
    ran = subprocess.run(
        ["bash", str(script), "body"],
        cwd=script.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout
