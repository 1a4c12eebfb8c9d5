"""Each chain's head is published where a superuser of this database can't change it."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from flask import Flask

from devstack.supervisor import wait_until
from payments_app.audit.chain import Fault
from payments_app.audit.heads import HeadPublisher, HeadsUnreadable, KeptHead, read_heads
from payments_app.integrity.checkpoints import write_checkpoints
from payments_app.integrity.verification import verify_record
from payments_app.kernel.jobs import Job
from payments_app.monitoring import gauges
from payments_app.tenants.model import Tenant
from payments_app.tenants.registry import configure_tenant
from payments_app.worker.celery_app import HOUSEKEEPING
from payments_app.worker.poller import Poller
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
    """The heads that were logged since the last call."""
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


def add_entry(tenant: Tenant) -> None:
    """Add an entry that does not change the tenant: its removal leaves no other trace."""
    configure_tenant(tenant, rate_limit=None, actor="cli:ada")


def test_each_head_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    mine, other = a_tenant(), a_tenant()
    publisher = HeadPublisher()
    caplog.clear()
    assert publisher.publish() == 2
    assert {tenant for tenant, _, _ in lines(caplog)} == {str(mine.id), str(other.id)}
    assert publisher.publish() == 0
    add_entry(mine)
    assert publisher.publish() == 1
    assert lines(caplog) == [(str(mine.id), 2, head_of(mine.id))]


def test_the_worker_says_them_beside_its_seals(caplog: pytest.LogCaptureFixture) -> None:
    mine = a_tenant()
    caplog.clear()
    assert write_checkpoints() == 0
    assert (str(mine.id), 1, head_of(mine.id)) in lines(caplog)


@pytest.mark.usefixtures("slow_gauges")
def test_what_was_said_shows_that_the_newest_entry_or_the_tenant_is_gone(
    superuser: Superuser, caplog: pytest.LogCaptureFixture
) -> None:
    mine, gone = a_tenant(), a_tenant()
    add_entry(mine)
    add_entry(mine)
    entries = survey_of_entries()
    HeadPublisher().publish()
    heads = {tenant: head for tenant, _, head in lines(caplog)}
    assert verify_record(None, sought=heads.values(), on_row=lambda: None).fault is None

    superuser.run("DELETE FROM audit_entries WHERE tenant_id = %s AND position = 3", mine.id)
    superuser.run("DELETE FROM audit_entries WHERE tenant_id = %s", gone.id)
    superuser.run("DELETE FROM tenants WHERE id = %s", gone.id)

    # Without the heads, each chain looks intact.
    assert verify_record(None, on_row=lambda: None).fault is None
    for tenant in (mine, gone):
        fault = verify_record(None, sought=[heads[str(tenant.id)]], on_row=lambda: None).fault
        assert fault is not None
        assert fault.row == f"hash {heads[str(tenant.id)]}"
    assert survey_of_entries() == entries - 2


# --- in a file, which is put on another host ------------------------------------------------------


def heads_in(file: Path) -> list[KeptHead]:
    with file.open() as lines:
        return list(read_heads(lines))


def fault_by(file: Path) -> Fault | None:
    return verify_record(None, kept=heads_in(file), on_row=lambda: None).fault


def test_each_head_is_appended_once_and_is_on_the_disk(tmp_path: Path) -> None:
    mine, other = a_tenant(), a_tenant()
    file, publisher = tmp_path / "heads.jsonl", HeadPublisher()
    assert publisher.publish(file) == 2
    first = heads_in(file)
    assert {(head.tenant_id, head.position) for head in first} == {(mine.id, 1), (other.id, 1)}
    assert publisher.publish(file) == 0
    add_entry(mine)
    assert publisher.publish(file) == 1
    assert heads_in(file) == [*first, KeptHead(mine.id, 2, head_of(mine.id))]
    # Another process, or this one after a restart, appends all heads to the file.
    assert HeadPublisher().publish(file) == 2
    assert heads_in(file)[:3] == [*first, KeptHead(mine.id, 2, head_of(mine.id))]
    assert fault_by(file) is None
    said = json.loads(file.read_text().splitlines()[0])
    assert set(said) == {"at", "tenant_id", "position", "hash"}
    assert file.stat().st_mode & 0o007 == 0


def test_what_is_not_known_to_be_on_the_disk_is_published_again(tmp_path: Path) -> None:
    a_tenant()
    publisher, pipe = HeadPublisher(), tmp_path / "heads.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    # A pipe takes the line, but fsync fails.
    assert [publisher.publish(pipe), publisher.publish(pipe)] == [1, 1]
    assert os.read(reader, 10_000).count(b"\n") == 2
    os.close(reader)


def test_a_full_disk_stops_no_seal(caplog: pytest.LogCaptureFixture) -> None:
    a_tenant()
    assert HeadPublisher().publish(Path("/dev/full")) == 1
    assert "No space left on device" in caplog.text


def test_a_worker_and_beat_append_to_the_file_that_is_set(
    make_app: Callable[..., Flask], tmp_path: Path
) -> None:
    file = tmp_path / "heads.jsonl"
    app = make_app(audit_heads_file=file)
    stop = threading.Event()
    poller = Poller(app, stop, checkpoint_every_s=0.05)
    poller.start([HOUSEKEEPING])
    with app.app_context():
        mine = a_tenant()
        wait_until(
            lambda: file.exists() and mine.id in tenants_in(file), what="no head", limit_s=30
        )
        poller.stop()
        poller.join()
        add_entry(mine)
        celery = app.extensions["celery"]
        celery.loader.import_default_modules()
        celery.tasks[Job.WRITE_CHECKPOINTS.value]()
    assert heads_in(file)[-1][:2] == (mine.id, 2)


def tenants_in(file: Path) -> set[UUID]:
    return {head.tenant_id for head in heads_in(file)}


def test_the_newest_entry_that_was_removed_is_named(superuser: Superuser, tmp_path: Path) -> None:
    mine, _other = a_tenant(), a_tenant()
    add_entry(mine)
    file = tmp_path / "heads.jsonl"
    HeadPublisher().publish(file)
    superuser.run("DELETE FROM audit_entries WHERE tenant_id = %s AND position = 2", mine.id)
    assert verify_record(None, on_row=lambda: None).fault is None
    fault = fault_by(file)
    assert fault is not None
    assert (fault.tenant_id, fault.table, fault.row, fault.problem) == (
        *(str(mine.id), "audit_entries", "position 2", "missing"),
    )


def test_a_tenant_that_was_removed_with_all_its_rows_is_named(
    superuser: Superuser, tmp_path: Path
) -> None:
    _mine, gone = a_tenant(), a_tenant()
    file = tmp_path / "heads.jsonl"
    HeadPublisher().publish(file)
    superuser.run("DELETE FROM audit_entries WHERE tenant_id = %s", gone.id)
    superuser.run("DELETE FROM tenants WHERE id = %s", gone.id)
    assert verify_record(None, on_row=lambda: None).fault is None
    fault = fault_by(file)
    assert fault is not None
    assert (fault.table, fault.row, fault.problem) == ("tenants", f"id {gone.id}", "missing")


def test_a_chain_that_was_written_anew_is_named_at_the_first_head_that_changed(
    superuser: Superuser, tmp_path: Path
) -> None:
    mine = a_tenant()
    file = tmp_path / "heads.jsonl"
    HeadPublisher().publish(file)
    add_entry(mine)
    HeadPublisher().publish(file)
    superuser.run(
        "UPDATE audit_entries SET actor = 'cli:eve' WHERE tenant_id = %s AND position = 2", mine.id
    )
    superuser.run(
        "UPDATE audit_entries e SET hash = audit_entry_hash(e) WHERE tenant_id = %s", mine.id
    )
    # The newer head is in the chain, the older one is not.
    HeadPublisher().publish(file)
    assert verify_record(None, on_row=lambda: None).fault is None
    fault = fault_by(file)
    assert fault is not None
    assert (fault.row, fault.problem) == ("position 2", "altered")


def test_more_heads_than_are_looked_up_at_once(tmp_path: Path) -> None:
    mine = a_tenant()
    HeadPublisher().publish(tmp_path / "heads.jsonl")
    (head,) = heads_in(tmp_path / "heads.jsonl")
    many = [head] * 2_500
    assert verify_record(None, kept=many, on_row=lambda: None).fault is None
    wrong = head._replace(position=2)
    fault = verify_record(None, kept=[*many, wrong], on_row=lambda: None).fault
    assert fault is not None
    assert (fault.tenant_id, fault.row) == (str(mine.id), "position 2")


def test_a_file_that_cannot_be_written_stops_no_seal_and_is_caught_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a_tenant()
    publisher, folder = HeadPublisher(), tmp_path / "away"
    assert publisher.publish(folder / "heads.jsonl") == 1
    assert "audit.heads_not_written" in caplog.text
    folder.mkdir()
    assert publisher.publish(folder / "heads.jsonl") == 1
    assert len(heads_in(folder / "heads.jsonl")) == 1
    assert publisher.publish(folder / "heads.jsonl") == 0


def test_a_line_that_was_begun_is_left_for_itself(tmp_path: Path) -> None:
    a_tenant()
    file = tmp_path / "heads.jsonl"
    file.write_text('{"at":')
    assert heads_in(file) == [], "it is being written"
    HeadPublisher().publish(file)
    begun, whole = file.read_text().splitlines()
    assert begun == '{"at":'
    assert len(list(read_heads([f"{whole}\n"]))) == 1
    with pytest.raises(HeadsUnreadable, match="line 1 "):
        heads_in(file)


GOOD_HEAD = {"tenant_id": "01a209ad-4164-7047-9850-453984927403", "position": 1, "hash": "a" * 64}


@pytest.mark.parametrize(
    "change",
    [
        *({"tenant_id": "x"}, {"tenant_id": None}, {"position": 0}, {"position": 2**63}),
        *({"position": "1"}, {"position": True}, {"hash": "a" * 63}, {"hash": "A" * 64}),
        *({"hash": None}, {"hash": f"{'a' * 64}\n"}),
    ],
)
def test_what_is_no_head_is_named_by_its_line(change: dict[str, object]) -> None:
    good = json.dumps(GOOD_HEAD) + "\n"
    assert len(list(read_heads([good, "\n", good]))) == 2
    with pytest.raises(HeadsUnreadable, match="line 2 "):
        list(read_heads([good, json.dumps(GOOD_HEAD | change) + "\n"]))


@pytest.mark.parametrize("line", ["[]", "7", '"x"', "nonsense", "{}"])
def test_what_is_not_even_an_object_is_no_head(line: str) -> None:
    with pytest.raises(HeadsUnreadable):
        list(read_heads([f"{line}\n"]))


def survey_of_entries() -> float:
    (found,) = [one for one in gauges.read_gauges() if one.name == "audit_entries"]
    return found.values[""]
