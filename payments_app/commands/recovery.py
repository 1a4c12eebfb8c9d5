"""`flask recovery`: return to service after the database was restored from a backup."""

from __future__ import annotations

from collections.abc import Sequence

from payments_app.commands.group import GatewayGroup, actor
from payments_app.commands.report import Report, table
from payments_app.payments.recovery import Progress, begin_recovery, finish_recovery, progress

recovery = GatewayGroup("recovery", help="After a restore: ask about everything, then go on.")


@recovery.command("begin", example="flask recovery begin")
def begin() -> Report:
    """Hold every tenant, and take each open payment for one that may have been sent.

    Before the first worker starts on the restored database. Then start the workers: they ask the
    provider about each. New payments get 503 tenant_held until flask recovery finish.
    """
    return _report(begin_recovery(actor=actor()), empty="There are no tenants.", begun=True)


@recovery.command("status", example="flask recovery status")
def status() -> Report:
    """Show how many payments the provider has not answered about yet, for each tenant.

    Exit code 1 while there are any.
    """
    return _report(progress(), empty="No tenant is held for a restore.")


@recovery.command("finish", example="flask recovery finish")
def finish() -> Report:
    """Let those tenants go whose payments were all asked about."""
    finished = finish_recovery(actor=actor())
    return _report(finished, empty="No tenant is held for a restore.")


def _report(found: Sequence[Progress], *, empty: str, begun: bool = False) -> Report:
    documents = [
        {"tenant": one.tenant.slug, "open": one.open, "waiting": one.waiting} for one in found
    ]
    rows = [(d["tenant"], d["open"], d["waiting"]) for d in documents]
    text = table(("TENANT", "OPEN PAYMENTS", "NOT ASKED YET"), rows, empty=empty)
    return Report({"data": documents}, text, well=begun or not any(one.waiting for one in found))
