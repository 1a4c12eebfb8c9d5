"""Tenants and webhook endpoints match the audit trail, also with entries of earlier releases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from cryptography.fernet import Fernet
from flask import Flask

from payments_app.audit.chain import Fault
from payments_app.audit.record import record
from payments_app.integrity.verification import verify_record
from payments_app.kernel.database import transaction
from payments_app.kernel.http.egress import EgressRules
from payments_app.kernel.secrets import Cipher
from payments_app.payments.recovery import begin_recovery
from payments_app.settings import Settings
from payments_app.tenants.holds import hold_tenant
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import configure_tenant, suspend_tenant
from payments_app.tenants.rotation import ENCRYPTED_COLUMNS, rotate_secrets
from payments_app.webhooks.encrypted_columns import WEBHOOK_ENCRYPTED_COLUMNS
from payments_app.webhooks.endpoints import (
    EndpointChanges,
    Owner,
    SecretRotation,
    change_endpoint,
    remove_endpoint,
    rotate_secret,
)
from payments_app.webhooks.model import EndpointStatus, WebhookEndpoint
from tests.builders import a_tenant, an_endpoint, keyring
from tests.storage.bending import LAWLESS, Superuser, another

TENANTS = "tenants"
ENDPOINTS = "webhook_endpoints"
AT = "2026-11-01T00:00:00+00:00"
WITHOUT_QUERY, QUERY = "http://127.0.0.1:9/hook", "?key=one"


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[Superuser]:
    with psycopg.connect(administrator_url, autocommit=True, options=LAWLESS) as connection:
        yield Superuser(connection)


@pytest.fixture
def cipher(app: Flask) -> Cipher:
    found: Cipher = app.extensions["maramoja"].cipher
    return found


@pytest.fixture
def tenant() -> Tenant:
    """A tenant with every setting set."""
    tenant = a_tenant()
    configure_tenant(tenant, rate_limit="9 per minute", tenant_rate_limit="99 per hour", actor="x")
    configure_tenant(
        tenant, require_idempotency_key=True, default_provider="mtn_momo", actor="cli:ada"
    )
    keyring().key_for(tenant.id)
    suspend_tenant(tenant, actor="cli:ada")
    hold_tenant(tenant.id, why="a test", actor="cli:ada")
    begin_recovery(actor="cli:ada")
    return tenant


@pytest.fixture
def endpoint(cipher: Cipher) -> WebhookEndpoint:
    """An endpoint whose secret was rotated, and which its tenant has disabled."""
    owner = Owner(a_tenant().id, "live")
    made = an_endpoint(owner, WITHOUT_QUERY + QUERY, "payment.successful").endpoint
    rotate_secret(owner, made.id, SecretRotation(), cipher=cipher, actor="cli:ada")
    change(made, EndpointChanges(description="The shop", status=EndpointStatus.DISABLED))
    return made


def change(endpoint: WebhookEndpoint, wanted: EndpointChanges) -> None:
    owner, rules = Owner(endpoint.tenant_id, endpoint.mode), EgressRules(allow_private=True)
    change_endpoint(owner, endpoint.id, wanted, rules=rules, actor="cli:ada")


def fault() -> Fault | None:
    return verify_record(None, on_row=lambda: None).fault


def told() -> tuple[str, str] | None:
    found = fault()
    return found and (found.table, found.problem.value)


# --- what verify finds ----------------------------------------------------------------------------

# A CHECK of the table requires these together.
TOGETHER: dict[str, dict[str, object]] = {
    "tenants.held_at": {"held_at": None, "held_why": None},
    "webhook_endpoints.status": {"status": "enabled", "disabled_at": None},
    "webhook_endpoints.secret": {"secret": None, "deleted_at": AT},
    "webhook_endpoints.deleted_at": {"deleted_at": AT, "secret": None},
}
OTHERS: dict[str, object] = {
    "status": "active",
    "slug": "another",
    "require_idempotency_key": False,
    "mode": "test",
    "url": "http://127.0.0.1:8/hook?key=one",
    "event_types": ["payment.failed"],
    "failing_since": AT,
    "served_at": AT,
}
UNWATCHED = {
    # Another tenant's data key can't be decrypted there; open_payment_readable finds a missing one.
    TENANTS: {"created_at", "data_key"},
    ENDPOINTS: {
        *("failing_since", "warned_days", "timeouts", "served_at", "created_at", "updated_at"),
    },
}


def other_values(table: str, column: str, data_type: str, kept: Any) -> Iterator[dict[str, object]]:
    """Other values for this column, and for those that must change with it."""
    together = TOGETHER.get(f"{table}.{column}")
    if together is not None:
        yield together
    if column not in ("status", "deleted_at") or table == TENANTS:
        yield {column: OTHERS.get(column) if column in OTHERS else another(kept, data_type)}
    # These settings have a value here, so NULL is another value.
    if column in ("rate_limit", "tenant_rate_limit", "default_provider", "restored_at"):
        yield {column: None}


@pytest.mark.parametrize("table", [TENANTS, ENDPOINTS])
def test_another_value_in_any_column(
    superuser: Superuser, request: pytest.FixtureRequest, table: str
) -> None:
    row_id = request.getfixturevalue(table.removeprefix("webhook_").removesuffix("s")).id
    assert fault() is None
    row, missed = superuser.row(table, row_id), set()
    for column, data_type in superuser.columns(table).items():
        for values in other_values(table, column, data_type, row[column]):
            with superuser.bent(table, row_id, **values):
                found = fault()
            if found is None:
                missed.add(column)
                continue
            identity = column in ("id", "tenant_id")
            assert identity or (found.table, found.problem.value) == (table, "altered")
            assert identity or column in found.detail, found
    assert missed == UNWATCHED[table]
    assert fault() is None


def test_the_secret_of_another_time_in_an_endpoint_that_stands(
    superuser: Superuser, endpoint: WebhookEndpoint
) -> None:
    row = superuser.row(ENDPOINTS, endpoint.id)
    with superuser.bent(ENDPOINTS, endpoint.id, secret=row["previous_secret"]):
        found = fault()
    assert found is not None
    assert found.detail.endswith("say: secret")


def test_another_secret_or_mode_in_an_endpoint_that_nothing_was_done_to(
    superuser: Superuser,
) -> None:
    endpoint = an_endpoint(Owner(a_tenant().id, "live")).endpoint
    secret = another(superuser.row(ENDPOINTS, endpoint.id)["secret"], "text")
    for change in ({"secret": secret}, {"mode": "test"}, {"previous_secret": "another"}):
        with superuser.bent(ENDPOINTS, endpoint.id, **change):
            assert told() == (ENDPOINTS, "altered"), change


@pytest.mark.parametrize("query", ["", "?", "?key=two"])
def test_another_query_in_an_address(
    superuser: Superuser, endpoint: WebhookEndpoint, query: str
) -> None:
    with superuser.bent(ENDPOINTS, endpoint.id, url=WITHOUT_QUERY + query):
        found = fault()
    assert found is not None
    assert found.detail.endswith("say: query")


def test_an_endpoint_that_nobody_added_and_one_that_is_gone(
    superuser: Superuser, endpoint: WebhookEndpoint
) -> None:
    row = superuser.row(ENDPOINTS, endpoint.id)
    superuser.insert(ENDPOINTS, {**row, "id": str(uuid4())})
    assert told() == (ENDPOINTS, "inserted")
    superuser.run("DELETE FROM webhook_endpoints")
    assert told() == (ENDPOINTS, "missing")


def test_a_tenant_that_is_gone_and_one_without_its_beginning(
    superuser: Superuser, tenant: Tenant
) -> None:
    row = superuser.row(TENANTS, tenant.id)
    superuser.remove(TENANTS, tenant.id)
    assert told() == (TENANTS, "missing")
    superuser.insert(TENANTS, row)
    planted = uuid4()
    superuser.insert(TENANTS, {**row, "id": str(planted), "slug": "planted"})
    add_entry(planted, "tenant.resumed", {})
    assert told() == (TENANTS, "altered")


@pytest.mark.parametrize(
    "action", ["tenant.created", "webhook_endpoint.added", "webhook_endpoint.changed"]
)
@pytest.mark.parametrize("detail", [{}, {"status": 1, "url": [], "disabled_at": "soon"}])
def test_a_forged_entry_does_not_end_the_walk_and_makes_nothing_twice(
    endpoint: WebhookEndpoint, action: str, detail: dict[str, object]
) -> None:
    of_tenant = action.startswith("tenant")
    add_entry(endpoint.tenant_id, action, detail, None if of_tenant else endpoint.id)
    table = TENANTS if of_tenant else ENDPOINTS
    # What the entry of a change does not mention is unchanged.
    no_change = action == "webhook_endpoint.changed" and not detail
    assert told() == (None if no_change else (table, "altered"))


def add_entry(
    tenant_id: UUID, action: str, detail: dict[str, object], endpoint_id: UUID | None = None
) -> None:
    with transaction(tenant_id) as session:
        record(
            session,
            tenant_id=tenant_id,
            actor="cli:eve",
            action=action,
            subject_type="tenant" if endpoint_id is None else "webhook_endpoint",
            subject_id=endpoint_id or tenant_id,
            detail=detail,
        )


# --- allowed changes ------------------------------------------------------------------------------


def test_each_change_of_an_endpoint_is_whole(cipher: Cipher) -> None:
    owner = Owner(a_tenant().id, "test")
    endpoint = an_endpoint(owner, WITHOUT_QUERY).endpoint
    for wanted in (
        EndpointChanges(),
        EndpointChanges(url=WITHOUT_QUERY + QUERY),
        EndpointChanges(url=WITHOUT_QUERY + "?key=two"),
        EndpointChanges(status=EndpointStatus.DISABLED),
        EndpointChanges(
            status=EndpointStatus.DISABLED, event_types=["payment.failed", "payment.*"]
        ),
        EndpointChanges(status=EndpointStatus.ENABLED, description="The shop"),
        EndpointChanges(url="http://127.0.0.1:9/"),
    ):
        change(endpoint, wanted)
        assert fault() is None, wanted
    for rotation in (
        SecretRotation(overlap=timedelta()),
        SecretRotation(),
        SecretRotation(discard_current=True),
    ):
        rotate_secret(owner, endpoint.id, rotation, cipher=cipher, actor="cli:ada")
        assert fault() is None, rotation
    change(endpoint, EndpointChanges(status=EndpointStatus.DISABLED))
    remove_endpoint(owner, endpoint.id, actor="cli:ada")
    assert fault() is None


def test_secrets_that_were_closed_anew_are_whole_and_watched(
    settings: Settings, superuser: Superuser, endpoint: WebhookEndpoint
) -> None:
    newer = Cipher([Fernet.generate_key().decode(), *settings.secret_keys])
    assert (
        rotate_secrets(
            newer, (*ENCRYPTED_COLUMNS, *WEBHOOK_ENCRYPTED_COLUMNS), actor="cli:ada"
        ).rewrapped
        >= 2
    )
    assert fault() is None
    for column in ("secret", "previous_secret"):
        closed = superuser.row(ENDPOINTS, endpoint.id)[column]
        with superuser.bent(ENDPOINTS, endpoint.id, **{column: another(closed, "text")}):
            assert told() == (ENDPOINTS, "altered")


# --- entries of earlier releases ------------------------------------------------------------------

TENANT_BEFORE = """
    INSERT INTO tenants (id, slug, name, held_at, held_why, restored_at, data_key)
    VALUES (%s, 'before', 'Before', now(), 'a test', now(), 'wrapped')
"""
ENDPOINT_BEFORE = """
    INSERT INTO webhook_endpoints (tenant_id, id, mode, url, event_types, secret, previous_secret,
        previous_secret_until, status, disabled_reason, disabled_at)
    VALUES (%s, %s, 'test', 'http://127.0.0.1:9/hook?key=one',
        '{payment.successful}', 'closed', 'closed before', now(), 'disabled', 'by_tenant', now())
"""
OF_TENANT: list[tuple[str, dict[str, object]]] = [
    ("tenant.created", {"slug": "before", "name": "Before"}),
    ("tenant.data_key_made", {}),
    ("tenant.held", {"why": "a test"}),
    ("recovery.begun", {}),
]
OF_ENDPOINT: list[tuple[str, dict[str, object]]] = [
    (
        "webhook_endpoint.added",
        {
            "url": WITHOUT_QUERY,
            "event_types": ["payment.successful"],
            "description": "",
            "status": "enabled",
        },
    ),
    ("webhook_endpoint.secret_rotated", {"overlap_hours": 24}),
    ("webhook_endpoint.rewrapped", {}),
    ("webhook_endpoint.changed", {"status": "disabled"}),
]


def test_what_earlier_releases_told_is_compared_and_the_rest_is_not(superuser: Superuser) -> None:
    tenant_id, endpoint_id = uuid4(), uuid4()
    superuser.run(TENANT_BEFORE, tenant_id)
    superuser.run(ENDPOINT_BEFORE, tenant_id, endpoint_id)
    for action, detail in OF_TENANT:
        add_entry(tenant_id, action, detail)
    for action, detail in OF_ENDPOINT:
        add_entry(tenant_id, action, detail, endpoint_id)
    assert fault() is None
    for table, row_id, change in (
        (TENANTS, tenant_id, {"held_why": "another"}),
        (TENANTS, tenant_id, {"status": "suspended"}),
        (ENDPOINTS, endpoint_id, {"url": "http://127.0.0.1:8/hook"}),
        (ENDPOINTS, endpoint_id, {"disabled_reason": "gone"}),
    ):
        with superuser.bent(table, row_id, **change):
            assert told() == (table, "altered"), change
    for table, row_id, change in (
        (TENANTS, tenant_id, {"restored_at": None, "data_key": "another"}),
        (ENDPOINTS, endpoint_id, {"url": WITHOUT_QUERY, "mode": "live", "secret": "another"}),
    ):
        with superuser.bent(table, row_id, **change):
            assert fault() is None, change
    add_entry(tenant_id, "webhook_endpoint.removed", {}, endpoint_id)
    superuser.run(
        "UPDATE webhook_endpoints SET disabled_reason = 'removed', deleted_at = now(), secret = NULL,"
        " previous_secret = NULL, previous_secret_until = NULL"
    )
    assert fault() is None
