"""One running stack for the pages, with a fast `flask`, and a tenant for each page."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests

from devstack.stack import Stack
from tests.docs.cli_server import ask
from tests.docs.pages import ROOT

NEVER_ANSWERS = "46733123453"


@dataclass
class Site:
    """A running gateway for a reader: addresses, `flask`, tenants with an API key."""

    stack: Stack
    cli_socket: str
    _keys: dict[str, str] = field(default_factory=dict)

    @property
    def payments(self) -> str:
        return f"{self.stack.api_url}/api/v1/payments"

    def flask(self, *arguments: str) -> str:
        code, out, err = ask(self.cli_socket, list(arguments), "")
        assert code == 0, f"flask {' '.join(arguments)}: {out}{err}"
        return out

    def key_of(self, tenant: str) -> str:
        """The tenant's API key; the first call creates the tenant and the key."""
        if tenant not in self._keys:
            code, _, err = ask(self.cli_socket, ["tenants", "create", tenant], "")
            assert code == 0 or "tenant_exists" in err, err
            self._keys[tenant] = self.new_key(tenant)["key"]
        return self._keys[tenant]

    def new_key(self, tenant: str) -> dict[str, Any]:
        issued: dict[str, Any] = json.loads(
            self.flask("keys", "issue", tenant, "--mode", "test", "--json")
        )
        return issued

    def environment(self, tenant: str) -> dict[str, str]:
        """The environment variables that the snippets need."""
        return {
            **self.stack.environment,
            "MARAMOJA_URL": self.stack.api_url,
            "MARAMOJA_KEY": self.key_of(tenant),
            "CLI_SOCKET": self.cli_socket,
        }

    def get(self, path: str, *, tenant: str, **query: str) -> dict[str, Any]:
        headers = {"X-API-Key": self.key_of(tenant)}
        answer = requests.get(f"{self.payments}{path}", params=query, headers=headers, timeout=10)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def movements(self, payment: dict[str, Any]) -> int:
        """How often money moved for the payment, by the simulator's own ledger."""
        ledger = f"{self.stack.simulator_url}/_admin/ledger"
        query = {"reference": payment["reference"]}
        return len(requests.get(ledger, params=query, timeout=10).json()["data"])


@pytest.fixture(scope="session")
def site(stack_factory: partial[Stack]) -> Iterator[Site]:
    limits = {"RATE_LIMIT_DEFAULT": "100000 per minute", "LOG_LEVEL": "WARNING"}
    with stack_factory(settings=limits) as stack:
        folder = Path(tempfile.mkdtemp(prefix="maramoja-docs-", dir="/tmp"))
        path = str(folder / "cli")
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/docs/cli_server.py"), path],
            cwd=ROOT,
            env={**stack.environment, "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield Site(stack, path)
        finally:
            server.kill()
            server.communicate()
            shutil.rmtree(folder)
