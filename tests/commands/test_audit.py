"""`flask audit` as an operator types it."""

from __future__ import annotations

import hashlib
import json
import shlex
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from flask import Flask

from payments_app.audit.heads import HeadPublisher
from payments_app.tenants.registry import find_tenant
from tests.api.http_caller import an_order, new_caller
from tests.builders import (
    ScriptedProvider,
    a_caller,
    an_accepted_payment,
    an_asker,
    publish_and_checkpoint,
    rails_of,
)
from tests.commands.conftest import Commands
from tests.conftest import Installation
from tests.nobodys_addresses import NOBODYS_URL

BEGINNING = "00" * 32


class Installed(Commands):
    """A test's own installation: all its records come from that test."""

    def __init__(self, app: Flask, administrator_url: str) -> None:
        super().__init__(app)
        self.app = app
        self.administrator_url = administrator_url

    def bend(self, statement: str) -> None:
        options = "-c session_replication_role=replica"
        with psycopg.connect(self.administrator_url, options=options) as connection:
            assert connection.execute(statement.encode()).rowcount > 0


@pytest.fixture
def flask(installation_of_its_own: Installation) -> Installed:
    own = installation_of_its_own
    return Installed(own.app, own.administrator_url)


def test_an_empty_database_is_said_to_be_so(flask: Installed) -> None:
    assert flask("audit verify").out == "There is no record yet: nothing was changed.\n"
    assert flask("audit verify --json").document["tenants"] == []
    assert flask("audit export").out == ""
    assert flask("audit export --json").document == {"data": []}


def test_a_whole_record_prints_each_tenants_head(flask: Installed) -> None:
    flask("tenants create acme")
    flask("keys issue acme")
    flask("tenants create birch")
    told = flask("audit verify --json").document
    assert told["whole"] is True
    assert [(t["tenant"], t["entries"], t["events"]) for t in told["tenants"]] == [
        ("acme", 3, 0),
        ("birch", 2, 0),
    ]
    text = flask("audit verify acme")
    assert text.code == 0
    assert text.err == "", "a progress bar is for terminals"
    assert told["tenants"][0]["head"] in text.out
    assert "birch" not in text.out


def test_a_head_kept_elsewhere_is_found_until_the_chain_is_another(flask: Installed) -> None:
    flask("tenants create acme")
    flask("tenants suspend acme")
    head = flask("audit verify --json").document["tenants"][0]["head"]
    flask("tenants resume acme")
    proved = flask(f"audit verify --head {head}")
    assert proved.code == 0
    assert "Still in the chain: 1" in proved.out
    flask.bend("DELETE FROM audit_entries WHERE position > 1")
    assert flask("audit verify").code == 0
    failed = flask(f"audit verify --head {head.upper()} --json")
    assert failed.code == 1
    assert failed.document["fault"]["row"] == f"hash {head}"
    assert flask("audit verify --head nonsense").code == 2


def test_the_first_bad_row_is_named_and_the_exit_code_is_one(flask: Installed) -> None:
    flask("tenants create acme")
    flask("keys issue acme")
    flask.bend("UPDATE audit_entries SET actor = 'cli:nobody' WHERE action = 'key.issued'")
    failed = flask("audit verify")
    assert failed.code == 1
    assert failed.out.startswith("NOT WHOLE: audit_entries, position 3 (id ")
    assert "tenant acme: altered:" in failed.out
    fault = flask("audit verify --json").document["fault"]
    assert (fault["tenant"], fault["table"], fault["problem"]) == (
        "acme",
        "audit_entries",
        "altered",
    )


OF_TENANT = (
    "tenants create acme --name Acme --rate-limit '9 per minute'",
    "tenants set acme --rate-limit default --tenant-rate-limit '99 per hour'",
    "tenants set acme --require-idempotency-key --default-provider mtn_momo",
    "tenants set acme --no-require-idempotency-key",
    "tenants suspend acme",
    "tenants suspend acme",
    "tenants resume acme",
    "tenants hold acme --why 'asked to stop'",
    "tenants release acme",
    "recovery begin",
    "recovery begin",
    "tenants hold acme --why another",
    "recovery begin",
    "recovery finish",
    "tenants release acme",
    "recovery begin",
    "recovery finish",
    f"webhooks add acme {NOBODYS_URL}?key=one --description 'The shop' --event payment.*",
)
OF_ENDPOINT = (
    f"webhooks set acme {{}} --url {NOBODYS_URL}?key=two",
    "webhooks set acme {} --status disabled",
    "webhooks set acme {} --status enabled --event payment.failed",
    f"webhooks set acme {{}} --url {NOBODYS_URL}",
    "webhooks rotate acme {} --overlap 1h",
    "webhooks rotate acme {} --overlap 2h --discard-current",
    "webhooks test acme {}",
    "webhooks rotate acme {} --overlap 0h",
    "webhooks remove acme {}",
)


def test_whatever_is_done_to_a_tenant_and_its_endpoints_is_whole(flask: Installed) -> None:
    for words in OF_TENANT:
        done = flask(*shlex.split(words))
        assert done.code == 0, (words, done.err)
        assert flask("audit verify").code == 0, words
    (endpoint,) = flask("webhooks list acme --json").document["data"]
    for words in OF_ENDPOINT:
        done = flask(words.format(endpoint["id"]))
        assert done.code == 0, (words, done.err)
        assert flask("audit verify").code == 0, words


def test_whatever_a_tenant_does_to_its_endpoints_over_the_api_is_whole(flask: Installed) -> None:
    caller = new_caller(flask.app)
    address = "/api/v1/webhook-endpoints"
    added = caller.send("POST", address, json={"url": f"{NOBODYS_URL}?key=one"}).get_json()
    path = f"{address}/{added['id']}"
    for method, where, body in (
        ("PATCH", path, {"url": f"{NOBODYS_URL}?key=two", "event_types": ["payment.*"]}),
        ("PATCH", path, {"status": "disabled", "description": "closed"}),
        ("PATCH", path, {"status": "enabled"}),
        ("POST", f"{path}/rotate-secret", {"overlap_hours": 1}),
        ("POST", f"{path}/test", None),
        ("DELETE", path, None),
    ):
        answer = caller.send(method, where, json=body)
        assert answer.status_code < 300, (method, where, answer.text)
        assert flask("audit verify").code == 0, (method, where)


def test_a_tenant_and_an_endpoint_that_were_changed_by_hand_are_named(flask: Installed) -> None:
    flask("tenants create acme")
    flask("tenants suspend acme")
    endpoint = flask(f"webhooks add acme {NOBODYS_URL} --json").document["id"]
    flask.bend("UPDATE tenants SET status = 'active'")
    told = flask("audit verify")
    assert told.code == 1
    assert ", tenant acme: altered: not what its entries" in told.out
    assert told.out.endswith("say: status\n")
    flask.bend("UPDATE tenants SET status = 'suspended'")
    flask.bend("UPDATE webhook_endpoints SET url = 'https://elsewhere.example/'")
    fault = flask("audit verify --json").document["fault"]
    assert (fault["table"], fault["row"]) == ("webhook_endpoints", f"id {endpoint}")


def test_the_list_has_what_people_changed_and_seals_only_when_asked(flask: Installed) -> None:
    flask("tenants create acme")
    with flask.app.app_context():
        tenant = find_tenant("acme")
        for _ in range(3):
            gateway = rails_of(flask.app, ScriptedProvider())
            an_accepted_payment(gateway, context=an_asker(caller=a_caller(tenant=tenant)))
            publish_and_checkpoint()

    shown = flask("audit list acme --limit 3 --json").document["data"]
    assert [one["action"] for one in shown] == ["key.issued"] * 3
    whole = flask("audit list acme --limit 1 --seals --json").document["data"]
    assert [one["action"] for one in whole] == ["payment_events.sealed"]


def test_every_change_tells_who_made_it_and_from_where(flask: Installed) -> None:
    flask("tenants create acme")
    key = flask("keys issue acme --json").document
    for words in (
        f"keys revoke {key['id']}",
        *("tenants set acme --rate-limit default", "tenants suspend acme", "tenants resume acme"),
    ):
        assert flask(words).code == 0
    entries = flask("audit list acme --json").document["data"]
    assert [entry["action"] for entry in entries] == [
        *("tenant.resumed", "tenant.suspended", "tenant.configured"),
        *("key.revoked", "key.issued", "tenant.data_key_made", "tenant.created"),
    ]
    assert {entry["source"] for entry in entries} == {socket.gethostname()}
    assert socket.gethostname() in flask("audit list acme").out


def test_an_export_can_be_verified_without_the_database(flask: Installed) -> None:
    caller = new_caller(flask.app)
    assert caller.post(an_order(), key=str(uuid4())).status_code == 201
    with flask.app.app_context():
        assert publish_and_checkpoint() == 1
    lines = [json.loads(line) for line in flask("audit export --events").out.splitlines()]
    entries = [line for line in lines if line["table"] == "audit_entries"]
    events = [line for line in lines if line["table"] == "payment_events"]
    head = BEGINNING
    for entry in entries:
        assert entry["previous_hash"] == head
        head = recomputed(entry)
        assert entry["hash"] == head
    assert head == flask("audit verify --json").document["tenants"][0]["head"]
    assert [recomputed(event) for event in events] == [events[0]["hash"]]
    assert recomputed({**events[0], "table": "event_contents"}) == events[0]["content_hash"]
    contents = hashlib.sha256(bytes.fromhex(events[0]["content_hash"])).hexdigest()
    assert entries[-1]["detail"]["contents"] == contents
    digest = hashlib.sha256(bytes.fromhex(events[0]["hash"])).hexdigest()
    assert entries[-1]["detail"]["digest"] == digest
    assert flask("audit export --events --json").document == {"data": lines}


def published(flask: Installed, file: Path) -> list[str]:
    """Write the file as a worker does when it starts; the file's lines."""
    with flask.app.app_context():
        HeadPublisher().publish(file)
    return file.read_text().splitlines()


def test_a_file_of_heads_names_the_newest_entry_that_was_removed(
    flask: Installed, tmp_path: Path
) -> None:
    for slug in ("acme", "birch"):
        assert flask(f"tenants create {slug}").code == 0
    file = tmp_path / "heads.jsonl"
    assert len(published(flask, file)) == 2
    assert (
        "Still in the chain: 2 heads that were kept." in flask(f"audit verify --heads {file}").out
    )
    assert "Still in the chain: 1 heads" in flask(f"audit verify acme --heads {file}").out

    flask.bend(
        "DELETE FROM audit_entries WHERE position = 2"
        " AND tenant_id = (SELECT id FROM tenants WHERE slug = 'acme')"
    )
    assert flask("audit verify").code == 0
    outcome = flask(f"audit verify --heads {file} --json")
    fault = outcome.document["fault"]
    assert outcome.code == 1
    assert (fault["tenant"], fault["table"], fault["row"]) == (
        "acme",
        "audit_entries",
        "position 2",
    )
    assert flask(f"audit verify birch --heads {file}").code == 0


@pytest.mark.parametrize("whose", ["", "acme"])
def test_a_file_without_a_head_proves_nothing(flask: Installed, tmp_path: Path, whose: str) -> None:
    assert flask("tenants create birch").code == 0
    file = tmp_path / "heads.jsonl"
    published(flask, file)
    assert flask("tenants create acme").code == 0
    if not whose:
        file.write_text("")

    outcome = flask(f"audit verify {whose} --heads {file}")

    assert outcome.code == 2
    assert "the file holds no head" in outcome.err


def test_a_file_of_heads_names_a_tenant_that_was_removed_with_all_its_rows(
    flask: Installed, tmp_path: Path
) -> None:
    for slug in ("acme", "birch"):
        assert flask(f"tenants create {slug}").code == 0
    file = tmp_path / "heads.jsonl"
    published(flask, file)
    birch = flask("tenants show birch --json").document["id"]
    for table, column in (("audit_entries", "tenant_id"), ("tenants", "id")):
        flask.bend(f"DELETE FROM {table} WHERE {column} = '{birch}'")  # noqa: S608  the test's own
    assert flask("audit verify").code == 0
    outcome = flask(f"audit verify --heads {file}")
    assert outcome.code == 1
    assert f"NOT WHOLE: tenants, id {birch}" in outcome.out


def test_a_file_that_has_no_heads_is_refused_with_the_line(
    flask: Installed, tmp_path: Path
) -> None:
    flask("tenants create acme")
    file = tmp_path / "heads.jsonl"
    for content in (b"nonsense\n", b"\xff\n"):
        file.write_bytes(content)
        outcome = flask(f"audit verify --heads {file}")
        assert outcome.code == 2
        assert "--heads" in outcome.err
    assert flask(f"audit verify --heads {tmp_path / 'none'}").code == 2


def test_an_export_can_be_of_one_tenant_and_of_one_time(flask: Installed) -> None:
    flask("tenants create acme")
    flask("tenants create birch")
    made, data_key = map(json.loads, flask("audit export birch").out.splitlines())
    assert made["detail"]["slug"] == "birch"
    assert data_key["action"] == "tenant.data_key_made"
    assert flask("audit export --until 2026-01-01").out == ""
    assert flask("audit export --since 2999-01-01T00:00:00Z").out == ""
    assert len(flask("audit export --since 2026-01-01 --until 2999-01-01").out.splitlines()) == 4
    assert flask("audit export nobody --json").error["code"] == "tenant_not_found"


HASHED = {
    "audit_entries": (
        *("previous_hash", "tenant_id", "position", "id", "actor", "action", "subject_type"),
        *("subject_id", "source", "request_id", "detail", "created_at"),
    ),
    "payment_events": (
        *("previous_hash", "tenant_id", "payment_id", "sequence", "id", "type", "status", "stage"),
        *("actor", "request_id", "data", "transaction_id", "created_at"),
    ),
    "event_contents": ("hash", "event_id", "mode", "position", "feed_data", "covers"),
}


def recomputed(row: dict[str, Any]) -> str:
    """The row's hash, computed from docs/audit.md alone."""
    fields = [row["table"]]
    for name in HASHED[row["table"]]:
        value = row[name]
        if isinstance(value, dict):
            value = json.dumps(value, ensure_ascii=False)
        elif name == "created_at":
            age = datetime.fromisoformat(value) - datetime(1970, 1, 1, tzinfo=UTC)
            value = age // timedelta(microseconds=1)
        fields.append(value)
    text = "".join("-" if f is None else f"{len(str(f))}:{f}" for f in fields)
    return hashlib.sha256(text.encode()).hexdigest()
