"""One task for each Job, one call each. Running one twice is harmless."""

from __future__ import annotations

from celery import shared_task
from flask import current_app

from payments_app.kernel.jobs import Job
from payments_app.payments import checkpoints, erasure, invariants, retention
from payments_app.webhooks import deliveries
from payments_app.worker.payment_processor import PROCESSOR
from payments_app.worker.poller import DISPATCHER


@shared_task(name=Job.PROCESS_DUE.value, ignore_result=True)
def process_due() -> None:
    """Call providers for the payments that are due: submit them, and ask for their status."""
    current_app.extensions[PROCESSOR].run_once()


@shared_task(name=Job.DISPATCH_WEBHOOKS.value, ignore_result=True)
def dispatch_webhooks() -> None:
    """Publish new events and send the deliveries that are due."""
    current_app.extensions[DISPATCHER].run_once()


@shared_task(name=Job.EXPIRE_ANSWERS.value, ignore_result=True)
def expire_answers() -> None:
    """Drop the stored answers whose time is over."""
    retention.expire_answers()


@shared_task(name=Job.ERASE_PAYERS.value, ignore_result=True)
def erase_payers() -> None:
    """Forget who paid what ended longer ago than PAYER_RETENTION_DAYS, if that is set."""
    erasure.erase_old_payers(current_app.extensions["maramoja"].settings.payer_retention_days)


@shared_task(name=Job.SEAL_EVENTS.value, ignore_result=True)
def write_checkpoints() -> None:
    """Take down in the audit trail which events there are."""
    checkpoints.write_checkpoints(current_app.extensions["maramoja"].settings.audit_heads_file)


@shared_task(name=Job.FORGET_DELIVERIES.value, ignore_result=True)
def forget_deliveries() -> None:
    """Drop webhook deliveries that ended longer ago than they are kept."""
    deliveries.forget_deliveries()


@shared_task(name=Job.CHECK_INVARIANTS.value, ignore_result=True)
def check_invariants() -> None:
    """Ask of every payment, and of the whole record, what must hold."""
    invariants.check_everything(current_app.extensions["maramoja"].cipher)
