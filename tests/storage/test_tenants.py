"""Tenants on real PostgreSQL: one slug, one tenant; every change with its audit entry."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from payments_app.audit.model import AuditEntry
from payments_app.kernel.database import EVERY_TENANT, transaction
from payments_app.tenants.errors import (
    TenantExists,
    TenantNotFound,
    TenantSettingInvalid,
    TenantSlugInvalid,
)
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import (
    configure_tenant,
    create_tenant,
    find_tenant,
    list_tenants,
    resume_tenant,
    suspend_tenant,
)

# A well-formed id of no row. Fixed: all test processes must collect the same names.
AN_ID = "01a209ad-4164-7047-9850-453984927403"


@pytest.fixture(autouse=True)
def _context(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


def new_slug() -> str:
    return f"t-{uuid4().hex[:12]}"


def a_tenant() -> Tenant:
    return create_tenant(slug=new_slug(), actor="cli:ada")


def story_of(tenant: Tenant) -> list[AuditEntry]:
    wanted = select(AuditEntry).where(AuditEntry.tenant_id == tenant.id).order_by(AuditEntry.id)
    with transaction(EVERY_TENANT) as session:
        return list(session.scalars(wanted))


def test_a_new_tenant_is_active_and_found_by_slug_and_by_id() -> None:
    slug = new_slug()
    tenant = create_tenant(slug=slug, name=" Acme Ltd ", actor="cli:ada")
    assert (tenant.name, tenant.status, tenant.require_idempotency_key) == (
        "Acme Ltd",
        "active",
        False,
    )
    assert tenant.id.version == 7
    assert find_tenant(slug).id == find_tenant(str(tenant.id)).id == tenant.id
    assert [t.slug for t in list_tenants() if t.id == tenant.id] == [slug]


def test_a_name_left_out_is_the_slug() -> None:
    tenant = a_tenant()
    assert tenant.name == tenant.slug


@pytest.mark.parametrize(
    "slug",
    ["", "A", "ä", "a_b", "-a", "a-", "a b", "a" * 64, "a\n", "a.b", "a/b", "a\0", AN_ID],
)
def test_a_bad_slug_is_refused_and_leaves_nothing(slug: str) -> None:
    before = len(list_tenants())
    with pytest.raises(TenantSlugInvalid):
        create_tenant(slug=slug, actor="cli:ada")
    assert len(list_tenants()) == before


@pytest.mark.parametrize("slug", ["a", "7", "a" * 63, "a--b", AN_ID.replace("-", "")])
def test_a_good_slug_is_taken(slug: str) -> None:
    assert create_tenant(slug=slug, actor="cli:ada").slug == slug


def test_the_database_refuses_a_bad_slug_too() -> None:
    with pytest.raises(DBAPIError, match="slug_form"), transaction(EVERY_TENANT) as session:
        session.add(Tenant(id=uuid4(), slug="Not A Slug", name="x"))


def test_a_taken_slug_is_refused_and_the_first_tenant_stays_as_it_was() -> None:
    slug = new_slug()
    first = create_tenant(slug=slug, name="First", actor="cli:ada")
    with pytest.raises(TenantExists):
        create_tenant(slug=slug, name="Second", actor="cli:bob")
    assert find_tenant(slug).name == "First"
    assert [entry.actor for entry in story_of(first)] == ["cli:ada"]


def test_of_many_who_create_one_slug_at_once_exactly_one_does(app: Flask) -> None:
    slug, racers = new_slug(), 6
    start = Barrier(racers)

    def create(number: int) -> Tenant | None:
        with app.app_context():
            start.wait(10)
            try:
                return create_tenant(slug=slug, name=f"Racer {number}", actor="cli:ada")
            except TenantExists:
                return None

    with ThreadPoolExecutor(racers) as pool:
        created = [tenant for tenant in pool.map(create, range(racers)) if tenant is not None]
    assert len(created) == 1
    assert find_tenant(slug).name == created[0].name
    assert len(story_of(created[0])) == 1


@pytest.mark.parametrize("unknown", ["nobody", AN_ID, "", "a\0b", "'; --", "x" * 10_000])
def test_an_unknown_tenant_is_not_found(unknown: str) -> None:
    with pytest.raises(TenantNotFound):
        find_tenant(unknown)


def test_suspending_and_resuming_are_told_once_each() -> None:
    tenant = a_tenant()
    assert suspend_tenant(tenant, actor="cli:ada").status == "suspended"
    assert suspend_tenant(tenant, actor="cli:ada").status == "suspended"
    assert find_tenant(tenant.slug).status == "suspended"
    assert resume_tenant(tenant, actor="cli:bob").status == "active"
    assert resume_tenant(tenant, actor="cli:bob").status == "active"
    told = [(entry.action, entry.actor) for entry in story_of(tenant)]
    assert told == [
        ("tenant.created", "cli:ada"),
        ("tenant.suspended", "cli:ada"),
        ("tenant.resumed", "cli:bob"),
    ]


def test_settings_change_one_by_one_and_can_be_given_back() -> None:
    tenant = a_tenant()
    configure_tenant(tenant, actor="cli:ada", rate_limit="5 per second; 600 per minute")
    changed = configure_tenant(
        tenant, actor="cli:ada", require_idempotency_key=True, default_provider="mtn_momo"
    )
    assert changed.rate_limit == "5 per second; 600 per minute"
    assert changed.require_idempotency_key
    assert configure_tenant(tenant, actor="cli:ada", rate_limit=None).rate_limit is None
    assert find_tenant(tenant.slug).default_provider == "mtn_momo"
    assert story_of(tenant)[-1].detail == {"rate_limit": None}


def test_settings_can_come_with_the_creation() -> None:
    tenant = create_tenant(
        slug=new_slug(), actor="cli:ada", rate_limit="7 per minute", require_idempotency_key=True
    )
    assert (tenant.rate_limit, tenant.require_idempotency_key) == ("7 per minute", True)


def test_no_settings_change_nothing_and_leave_no_entry() -> None:
    tenant = a_tenant()
    configure_tenant(tenant, actor="cli:ada")
    assert len(story_of(tenant)) == 1


@pytest.mark.parametrize(
    "rate", ["", "often", "0 per minute", "-1 per minute", "5 per minute\n", "5/minute;" * 50]
)
def test_a_malformed_rate_is_refused(rate: str) -> None:
    tenant = a_tenant()
    with pytest.raises(TenantSettingInvalid):
        configure_tenant(tenant, actor="cli:ada", rate_limit=rate)
    assert find_tenant(tenant.slug).rate_limit is None


@pytest.mark.parametrize("provider", ["", "MTN", "mtn momo", "x" * 41, "mtn\n"])
def test_a_malformed_provider_is_refused(provider: str) -> None:
    with pytest.raises(TenantSettingInvalid):
        configure_tenant(a_tenant(), actor="cli:ada", default_provider=provider)


@pytest.mark.parametrize("name", ["two\nlines", "nul\0", "x" * 201])
def test_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(TenantSettingInvalid):
        create_tenant(slug=new_slug(), name=name, actor="cli:ada")
