"""Clients that stock generators make of openapi.json take a payment, and read an error."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from payments_app.payments import outbox
from payments_app.providers.contract import Mode
from payments_app.webhooks.endpoints import Owner
from tests.api.http_caller import Engine, HttpCaller, served
from tests.builders import ANSWERS, ScriptedProvider, an_endpoint
from tests.webhooks.dispatching import deliver_due
from tests.webhooks.receiver import receiving

ROOT = Path(__file__).parents[2]
TYPESCRIPT = Path(__file__).parent / "typescript"
PROGRAM = "take_payment.ts"
PYTHON_CLIENT = "maramoja_client"
GENERATION_MAX_S = 100


@pytest.fixture
def address(engine: Engine) -> Iterator[str]:
    """Where the app of `engine` is served."""
    with served(engine.app) as url:
        yield url


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package `maramoja_client`, as openapi-python-client makes it."""
    folder = tmp_path_factory.mktemp("client")
    # It would format what it has made: nobody reads it.
    (folder / "config.yaml").write_text("post_hooks: []\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "openapi_python_client", "generate"),
            *("--path", str(ROOT / "openapi.json"), "--meta", "none", "--fail-on-warning"),
            *("--config", str(folder / "config.yaml")),
            *("--output-path", str(folder / PYTHON_CLIENT)),
        ],
        capture_output=True,
        text=True,
        timeout=GENERATION_MAX_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    yield PYTHON_CLIENT
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == PYTHON_CLIENT]:
        del sys.modules[name]


@pytest.fixture
def made(generated: str, scripted_caller: HttpCaller, address: str) -> Iterator[PythonClient]:
    package = importlib.import_module(generated)
    with package.AuthenticatedClient(base_url=address, token=scripted_caller.key.key) as client:
        yield PythonClient(client)


class PythonClient:
    """What the tests call of the generated one: its functions and models by name."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.models = importlib.import_module(f"{PYTHON_CLIENT}.models")

    def pay(self, **changes: Any) -> Any:
        order = {"amount": "1000", "currency": "EUR", "payer": "256772123456", **changes}
        return self.call(
            "payments.create_payment",
            body=self.models.NewPayment.from_dict(order),
            idempotency_key=str(uuid4()),
        )

    def show(self, payment: Any) -> Any:
        return self.call("payments.show_payment", payment_id=payment.id)

    def call(self, name: str, **arguments: Any) -> Any:
        function = importlib.import_module(f"{PYTHON_CLIENT}.api.{name}")
        return function.sync(client=self.client, **arguments)


@pytest.mark.slow
def test_a_python_client_takes_a_payment_to_its_end(
    made: PythonClient, engine: Engine, provider: ScriptedProvider
) -> None:
    paid, failed = made.pay(metadata={"cart": "c-1"}), made.pay(external_id="order-2")
    assert (paid.status.value, paid.failure, paid.external_id) == ("PENDING", None, None)

    engine.finish({"id": str(paid.id)})
    provider.checks[:] = [ANSWERS["declined"]]
    engine.finish({"id": str(failed.id)})

    assert made.show(paid).status.value == "SUCCESSFUL"
    assert made.show(failed).failure.code == "payer_rejected"
    page = made.call("payments.list_payments", limit=10)
    assert [one.id for one in page.data] == [failed.id, paid.id]
    assert page.next_cursor is None
    with engine.app.app_context():
        outbox.publish_outbox()
    told = made.call("events.list_all_events").data[-1]
    assert told.data.payment_id == failed.id
    assert told.data.failure.code == "payer_rejected"


@pytest.mark.slow
def test_a_python_client_reads_an_error(made: PythonClient) -> None:
    invalid = made.pay(payer="1")
    assert (invalid.code, invalid.errors[0].pointer) == ("validation_failed", "/payer")

    first = made.pay(external_id="order-1")
    taken = made.pay(external_id="order-1")
    assert (taken.status.value, taken.payment_id) == (409, first.id)

    nowhere = made.call("payments.show_payment", payment_id=UUID(int=1))
    assert nowhere.code == "payment_not_found"


@pytest.mark.slow
def test_a_python_client_reads_a_webhook(
    made: PythonClient, engine: Engine, scripted_caller: HttpCaller
) -> None:
    with receiving() as receiver:
        with engine.app.app_context():
            an_endpoint(Owner(scripted_caller.tenant.id, Mode.TEST), receiver.url)
        paid = made.pay(metadata={"cart": "c-1"})
        with engine.app.app_context():
            outbox.publish_outbox()
            deliver_due(engine.app)

    message = made.models.PaymentMessage.from_dict(receiver.received[0].document)
    assert (message.type_.value, message.data.payment_id) == ("payment.accepted", paid.id)
    assert message.data.metadata.to_dict() == {"cart": "c-1"}


@pytest.fixture(scope="module")
def typescript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a compiled program that calls the generated client."""
    if shutil.which("npm") is None:
        pytest.skip("no Node here")
    folder = tmp_path_factory.mktemp("typescript")
    for path in TYPESCRIPT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    installed = _run(folder, "npm", "ci", "--prefer-offline", "--no-audit", "--no-fund")
    if installed.returncode != 0:
        # What is wrong with our own package.json or lock is no matter of the network.
        ours = ("EUSAGE", "EINTEGRITY", "ERESOLVE", "EJSONPARSE", "EBADENGINE")
        assert not any(code in installed.stderr for code in ours), installed.stderr
        pytest.skip(f"npm has no way to its packages: {installed.stderr[-300:]}")
    openapi = str(ROOT / "openapi.json")
    for command in (
        ("node_modules/.bin/openapi-typescript", openapi, "-o", "api.d.ts"),
        # nodenext: as Node itself finds modules. skipLibCheck is off: api.d.ts is looked at too.
        (
            "node_modules/.bin/tsc",
            "--strict",
            "--module",
            "nodenext",
            "--target",
            "es2022",
            PROGRAM,
        ),
    ):
        done = _run(folder, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _run(folder: Path, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **settings},
        capture_output=True,
        text=True,
        timeout=GENERATION_MAX_S,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(4 * GENERATION_MAX_S)
def test_a_typescript_client_takes_a_payment_and_reads_an_error(
    typescript: Path,
    engine: Engine,
    provider: ScriptedProvider,
    scripted_caller: HttpCaller,
    address: str,
) -> None:
    settings = {"MARAMOJA_URL": address, "MARAMOJA_KEY": scripted_caller.key.key}

    def told(*arguments: str) -> Any:
        done = _run(typescript, "node", "take_payment.js", *arguments, **settings)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    taken, refused = told()
    assert (taken["status"], taken["failure"]) == ("PENDING", None)
    assert refused == {"code": "validation_failed", "errors": ["/payer"]}

    provider.checks[:] = [ANSWERS["declined"]]
    engine.finish(taken)
    assert told(taken["id"]) == [{"status": "FAILED", "failure": "payer_rejected"}]
    assert told(str(UUID(int=1))) == [{"code": "payment_not_found"}]
