"""Judges the end of a run by the tables, the provider's true state and the clients' answers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from payments_app.payments.evidence import opened_body
from payments_app.payments.payers import decrypt_payer
from payments_app.payments.states import INITIAL_STATE, TRANSITIONS, Event, Stage
from tests.builders import keyring
from tests.simulation.bank import Bank, BankOrder, Fate
from tests.simulation.clients import Clients, Intent, Said
from tests.simulation.referee import Check, Referee, Row, Violation

# These change no stage that a tenant sees, so they write no event.
_SILENT = (Event.SUBMITTING, Event.NOT_SENT)


@dataclass(frozen=True)
class Record:
    """All rows of one payment."""

    payment: Row
    events: list[Row]
    exchanges: list[Row]
    callbacks: list[Row]


def judge(referee: Referee, clients: Clients, bank: Bank, *, was_cut: bool) -> None:
    """Raise Violation for the first rule that this run broke.

    `was_cut`: a connection was lost, so errors inside the engine are expected.
    """
    records = _read(referee)
    _judge_clients(records, clients)
    for record in records.values():
        _judge_wall(record)
        _judge_charge(record, bank)
        _judge_evidence(record, bank)
        _judge_not_sent(record, referee)
        _judge_story(record, contradicted=str(record.payment["reference"]) in bank.mixed_up)
        if not was_cut and any(e["reason"] == "adapter_failed" for e in record.exchanges):
            raise Violation(Check.NO_CRASH, "an error while going out to the provider")
    _judge_bank(records, bank)


def _read(referee: Referee) -> dict[UUID, Record]:
    children: dict[str, dict[UUID, list[Row]]] = {}
    for table, order in (
        ("events", "sequence"),
        ("provider_exchanges", "generation"),
        ("callbacks", "id"),
    ):
        grouped: dict[UUID, list[Row]] = defaultdict(list)
        for row in referee.rows(f"SELECT * FROM {table} ORDER BY {order}"):  # noqa: S608
            grouped[row["payment_id"]].append(row)
        children[table] = grouped
    return {
        row["id"]: _opened(Record(row, *(children[table][row["id"]] for table in children)))
        for row in referee.rows("SELECT * FROM payments ORDER BY description, id")
    }


def _opened(record: Record) -> Record:
    """The record with the payer's number and the provider's answers decrypted."""
    row = record.payment
    payer = decrypt_payer(
        keyring(), tenant_id=row["tenant_id"], payment_id=row["id"], sealed=row["payer"]
    )
    row["payer"] = payer and payer.msisdn.digits
    for exchange in record.exchanges:
        exchange["body"] = opened_body(
            payer, generation=exchange["generation"], body=exchange["body"]
        )
    return record


# --- what clients were answered ---------------------------------------------------------------


def _judge_clients(records: dict[UUID, Record], clients: Clients) -> None:
    for intent in clients.intents:
        said = [answer for answer in clients.said if answer.intent is intent]
        made = [
            record.payment
            for record in records.values()
            if record.payment["description"] == intent.name
        ]
        accepted = [answer for answer in said if answer.what == "ok"]
        _judge_acks(records, intent, accepted)
        if intent.key is not None:
            _judge_key(intent, accepted, said, made)


def _judge_acks(records: dict[UUID, Record], intent: Intent, accepted: Iterable[Said]) -> None:
    for answer in accepted:
        record = records.get(answer.payment_id) if answer.payment_id else None
        if record is None:
            raise Violation(Check.NO_LOST_ACK, f"{intent.name} was told of a payment that isn't")
        if record.payment["tenant_id"] != intent.caller.tenant_id:
            raise Violation(Check.TENANT_WALL, f"{intent.name} was shown another tenant's payment")
        if str(answer.payment_id) != json.loads(answer.body)["id"]:
            raise Violation(Check.SAME_ANSWER, f"{intent.name}: the body names another payment")


def _judge_key(  # noqa: C901  one rule after the other
    intent: Intent, accepted: list[Said], said: list[Said], made: list[Row]
) -> None:
    if len(made) > 1:
        raise Violation(Check.ONE_ACCEPT, f"{intent.name} has {len(made)} payments")
    if len({answer.body for answer in accepted}) > 1:
        raise Violation(Check.SAME_ANSWER, f"{intent.name} was given different answers")
    if len({answer.variant for answer in accepted}) > 1:
        raise Violation(Check.REUSE_SEEN, f"{intent.name}: two requests share one answer")
    if not made:
        if any(answer.what != "idempotency_key_in_progress" for answer in said):
            raise Violation(Check.NO_LOST_ACK, f"{intent.name} was answered and has no payment")
        return
    winner = made[0]["amount_minor"] - intent.minor
    for answer in said:
        reused = answer.what == "idempotency_key_reused"
        if reused and answer.variant == winner:
            raise Violation(Check.SAME_ANSWER, f"{intent.name}: an honest retry was refused")
        if not reused and answer.what == "ok" and answer.variant != winner:
            raise Violation(Check.REUSE_SEEN, f"{intent.name}: another request was let in")


# --- what happened to each payment ------------------------------------------------------------


def _judge_wall(record: Record) -> None:
    tenants = {row["tenant_id"] for row in (*record.events, *record.exchanges, *record.callbacks)}
    if tenants - {record.payment["tenant_id"]}:
        raise Violation(Check.TENANT_WALL, "a payment's rows belong to another tenant")


def _judge_charge(record: Record, bank: Bank) -> None:
    payment = record.payment
    orders = [o for o in bank.orders.values() if o.external_id == str(payment["id"])]
    if len(orders) > 1:
        paid = sum(order.fate is Fate.SUCCESSFUL for order in orders)
        raise Violation(Check.ONE_CHARGE, f"{len(orders)} orders for a payment, {paid} paid")
    truth = _truth(payment, orders, bank)
    if payment["status"] != truth:
        raise Violation(Check.TRUTH, f"we say {payment['status']}, the provider {truth}")


def _truth(payment: Row, orders: list[BankOrder], bank: Bank) -> str:
    if orders:
        order = orders[0]
        if order.amount != str(payment["amount_minor"]) or order.payer != payment["payer"]:
            raise Violation(Check.TRUTH, "the provider was asked for something else")
        return order.fate.value
    return Fate.FAILED.value if str(payment["reference"]) in bank.refused else "no trace of it"


def _judge_evidence(record: Record, bank: Bank) -> None:
    payment = record.payment
    evidence = next((e for e in record.exchanges if e["id"] == payment["evidence_id"]), None)
    if evidence is None:
        raise Violation(Check.EVIDENCE, "an end without a stored answer")
    fitting = {"SUCCESSFUL"} if payment["status"] == "SUCCESSFUL" else {"FAILED", "REFUSED"}
    if evidence["verdict"] not in fitting:
        raise Violation(Check.EVIDENCE, f"the end rests on {evidence['verdict']}")
    if evidence["body"] not in bank.said.get(str(payment["reference"]), []):
        raise Violation(Check.EVIDENCE, "the evidence is not what the provider said")
    if any(exchange["reference"] != payment["reference"] for exchange in record.exchanges):
        raise Violation(Check.REFERENCE, "an exchange under another reference")


def _judge_not_sent(record: Record, referee: Referee) -> None:
    for exchange in record.exchanges:
        # A throttled request was sent: its row has the answer's status.
        if exchange["verdict"] == "NOT_SENT" and exchange["http_status"] is None:
            sent = (str(exchange["reference"]), exchange["generation"])
            if exchange["kind"] == "submit" and sent in referee.arrived:
                raise Violation(Check.NOT_SENT, f"generation {sent[1]} did leave")


def _judge_story(record: Record, *, contradicted: bool) -> None:
    payment, events = record.payment, record.events
    sequences = [event["sequence"] for event in events]
    if sequences != list(range(1, payment["sequence"] + 1)):
        raise Violation(Check.STORY, f"the story has lines {sequences}")
    stages = {Stage(INITIAL_STATE.stage)}
    for event in events[1:]:
        kind = Event(event["type"])
        if kind is Event.CONTRADICTED:
            if not contradicted:
                raise Violation(Check.TRUTH, "the provider, who doesn't lie, contradicts our end")
            continue
        reached = {TRANSITIONS.get((stage, kind)) for stage in _silently(stages)} - {None}
        fitting = {s for s in reached if s and s == (event["status"], event["stage"])}
        if not fitting:
            raise Violation(Check.STORY, f"{kind} can't have happened here")
        stages = {Stage(event["stage"])}
    if Stage(payment["stage"]) not in stages:
        raise Violation(Check.STORY, "the payment is elsewhere than its story")


def _silently(stages: set[Stage]) -> set[Stage]:
    """The stages that a payment can have reached without an event."""
    reached = set(stages)
    while (
        more := {
            TRANSITIONS[stage, event].stage
            for stage in reached
            for event in _SILENT
            if (stage, event) in TRANSITIONS
        }
        - reached
    ):
        reached |= more
    return reached


def _judge_bank(records: dict[UUID, Record], bank: Bank) -> None:
    known = {str(record.payment["reference"]) for record in records.values()}
    if set(bank.orders) - known:
        raise Violation(Check.ONE_CHARGE, "the provider has an order that is in no table")
