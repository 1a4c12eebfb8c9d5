"""Clients that others published run against the simulator unchanged (provider facts 6.1)."""

from __future__ import annotations

from collections.abc import Iterator

import momo_openapi
import momo_openapi.sandbox
import pytest
import requests
from momo_api.client import MomoApi
from momo_api.exceptions import ConflictException, ResourceNotFoundException
from momo_api.models.config import Config
from momo_api.models.payment_request import PaymentRequest
from momo_api.models.transfer_request import TransferRequest
from momo_api.products.collection import CollectionApi
from momo_openapi import Collection, Disbursement, MomoAPIError, MomoConfig

from tests.simulator.driving import PAYER, Merchant, new_reference

KEY = "a-key-from-the-portal"
REJECTS = "46733123451"


@pytest.fixture
def credentials(url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """An API user and key, created by momo-openapi's own provisioning."""
    monkeypatch.setattr(momo_openapi.sandbox, "SANDBOX_URL", url)
    with requests.Session() as session:
        return momo_openapi.provision_sandbox_user(KEY, "example.test", session=session)


@pytest.fixture
def config(url: str, credentials: tuple[str, str]) -> MomoConfig:
    return MomoConfig(KEY, *credentials, target_environment="sandbox", base_url=url)


@pytest.fixture
def openapi(config: MomoConfig) -> Iterator[Collection]:
    with requests.Session() as session:
        yield Collection(config, session=session)


@pytest.fixture
def lepresk(url: str, monkeypatch: pytest.MonkeyPatch) -> CollectionApi:
    """mtn-momo-client, with a user created by its own provisioning."""
    monkeypatch.setattr(MomoApi, "SANDBOX_URL", url)
    momo = MomoApi.create(MomoApi.ENVIRONMENT_SANDBOX)
    api_user = momo.sandbox(KEY).create_api_user(new_reference(), "example.test")
    assert momo.sandbox(KEY).get_api_user(api_user)["providerCallbackHost"] == "example.test"
    api_key = momo.sandbox(KEY).create_api_key(api_user)
    return momo.get_collection(Config.collection(KEY, api_user, api_key))


def test_momo_openapi_collects(openapi: Collection, merchant: Merchant) -> None:
    paid = openapi.request_to_pay("5", PAYER, "order-1", currency="EUR")
    failed = openapi.request_to_pay("5", REJECTS, "order-2", currency="EUR")
    assert openapi.get_transaction_status(paid)["status"] == "SUCCESSFUL"
    assert openapi.get_transaction_status(failed)["reason"] == "APPROVAL_REJECTED"
    assert (merchant.movements(paid), merchant.movements(failed)) == (1, 0)
    assert openapi.get_balance() == {"availableBalance": "1000005.00", "currency": "EUR"}


def test_momo_openapi_sees_the_conflict(openapi: Collection) -> None:
    reference = openapi.request_to_pay("5", PAYER, "order-1", currency="EUR")
    with pytest.raises(MomoAPIError) as caught:
        openapi.request_to_pay("5", PAYER, "order-1", currency="EUR", reference_id=reference)
    assert caught.value.status_code == 409
    assert caught.value.code == "RESOURCE_ALREADY_EXIST"


def test_momo_openapi_pays_out(config: MomoConfig) -> None:
    with requests.Session() as session:
        client = Disbursement(config, session=session)
        reference = client.transfer("5", "46733123455", "order-1", currency="EUR")
        assert client.get_transaction_status(reference)["reason"] == "NOT_ENOUGH_FUNDS"


def test_mtn_momo_client_collects(lepresk: CollectionApi, merchant: Merchant) -> None:
    paid = lepresk.request_to_pay(PaymentRequest.make("5", PAYER, "order-1"))
    failed = lepresk.quick_pay("5", REJECTS, "order-2")
    assert lepresk.get_payment_status(paid).status == "SUCCESSFUL"
    assert lepresk.get_payment_status(paid).financial_transaction_id
    assert lepresk.get_payment_status(failed).status == "FAILED"
    assert (merchant.movements(paid), merchant.movements(failed)) == (1, 0)


def test_mtn_momo_client_sees_conflicts_and_absence(lepresk: CollectionApi) -> None:
    reference = lepresk.quick_pay("5", PAYER, "order-1")
    with pytest.raises(ConflictException):
        lepresk.quick_pay("5", PAYER, "order-1", reference_id=reference)
    with pytest.raises(ResourceNotFoundException):
        lepresk.get_payment_status(new_reference())


def test_mtn_momo_client_pays_out(lepresk: CollectionApi) -> None:
    momo = MomoApi.create(MomoApi.ENVIRONMENT_SANDBOX)
    client = momo.get_disbursement(lepresk.config)
    reference = client.transfer(TransferRequest.make("5", PAYER, "order-1"))
    assert client.get_transfer_status(reference).status == "SUCCESSFUL"
