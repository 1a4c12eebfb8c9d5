"""Each chain's head is said where a superuser of this database can't take it back."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import psycopg
import pytest

from payments_app.audit.heads import HeadPublisher
from payments_app.payments import survey
from payments_app.payments.checkpoints import write_checkpoints
from payments_app.payments.verification import verify_record
from payments_app.tenants.registry import resume_tenant, suspend_tenant
from tests.builders import a_tenant
from tests.storage.bending import LAWLESS, Superuser


@pytest.fixture
def superuser(administrator_url: str) -> Iterator[Superuser]:
    with psycopg.connect(administrator_url, autocommit=True, options=LAWLESS) as connection:
        yield Superuser(connection)


@pytest.fixture(autouse=True)
def _loud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    """What was said since the last look."""
    said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    caplog.clear()
    return [
        (one["audited_tenant_id"], one["position"], one["hash"])
        for one in said
        if one["event"] == "audit.head"
    ]


def head_of(tenant_id: object) -> str:
    verdict = verify_record(None, on_row=lambda: None)
    (found,) = [one.head for one in verdict.tenants if one.tenant_id == str(tenant_id)]
    return found


def test_each_head_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    mine, other = a_tenant(), a_tenant()
    publisher = HeadPublisher()
    caplog.clear()
    assert publisher.publish() == 2
    assert {tenant for tenant, _, _ in lines(caplog)} == {str(mine.id), str(other.id)}
    assert publisher.publish() == 0
    suspend_tenant(mine, actor="cli:ada")
    assert publisher.publish() == 1
    assert lines(caplog) == [(str(mine.id), 2, head_of(mine.id))]


def test_the_worker_says_them_beside_its_seals(caplog: pytest.LogCaptureFixture) -> None:
    mine = a_tenant()
    caplog.clear()
    assert write_checkpoints() == 0
    assert (str(mine.id), 1, head_of(mine.id)) in lines(caplog)


def test_what_was_said_shows_that_the_newest_entry_or_the_tenant_is_gone(
    superuser: Superuser, caplog: pytest.LogCaptureFixture
) -> None:
    mine, gone = a_tenant(), a_tenant()
    suspend_tenant(mine, actor="cli:ada")
    resume_tenant(mine, actor="cli:ada")
    entries = survey_of_entries()
    HeadPublisher().publish()
    heads = {tenant: head for tenant, _, head in lines(caplog)}
    assert verify_record(None, sought=heads.values(), on_row=lambda: None).fault is None

    superuser.run("DELETE FROM audit_entries WHERE tenant_id = %s AND position = 3", mine.id)
    superuser.run("DELETE FROM audit_entries WHERE tenant_id = %s", gone.id)
    superuser.run("DELETE FROM tenants WHERE id = %s", gone.id)

    # Alone each chain looks whole.
    assert verify_record(None, on_row=lambda: None).fault is None
    for tenant in (mine, gone):
        fault = verify_record(None, sought=[heads[str(tenant.id)]], on_row=lambda: None).fault
        assert fault is not None
        assert fault.row == f"hash {heads[str(tenant.id)]}"
    assert survey_of_entries() == entries - 2


def survey_of_entries() -> float:
    (found,) = [one for one in survey.survey() if one.name == "audit_entries"]
    return found.values[""]
