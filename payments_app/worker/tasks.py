"""One task for each Job, one call each. Running one twice is harmless."""

from __future__ import annotations

from celery import shared_task
from flask import current_app

from payments_app.integrity import checkpoints, invariants
from payments_app.kernel.jobs import Job
from payments_app.payments import payers, retention
from payments_app.webhooks import deliveries
from payments_app.worker.payment_processor import PROCESSOR
from payments_app.worker.poller import DISPATCHER


@shared_task(name=Job.PROCESS_DUE.value, ignore_result=True)
def process_due() -> None:
    """Call providers for the payments that are due: submit them, and check their status."""
    current_app.extensions[PROCESSOR].run_once()


@shared_task(name=Job.DISPATCH_WEBHOOKS.value, ignore_result=True)
def dispatch_webhooks() -> None:
    """Publish new events and send the deliveries that are due."""
    current_app.extensions[DISPATCHER].run_once()


@shared_task(name=Job.PURGE_RESPONSES.value, ignore_result=True)
def purge_responses() -> None:
    """Purge the stored responses that have expired."""
    retention.purge_responses()


@shared_task(name=Job.ERASE_PAYERS.value, ignore_result=True)
def erase_payers() -> None:
    """Erase the payers of payments that ended over PAYER_RETENTION_DAYS ago, if that is set."""
    payers.erase_old_payers(current_app.extensions["maramoja"].settings.payer_retention_days)


@shared_task(name=Job.WRITE_CHECKPOINTS.value, ignore_result=True)
def write_checkpoints() -> None:
    """Write checkpoints of the payment events into the audit trail."""
    checkpoints.write_checkpoints(current_app.extensions["maramoja"].settings.audit_heads_file)


@shared_task(name=Job.PURGE_DELIVERIES.value, ignore_result=True)
def purge_deliveries() -> None:
    """Purge the webhook deliveries whose retention period is over."""
    deliveries.purge_deliveries()


@shared_task(name=Job.CHECK_INVARIANTS.value, ignore_result=True)
def check_invariants() -> None:
    """Check the invariants of every payment and of the audit trail."""
    invariants.check_everything(current_app.extensions["maramoja"].cipher)
