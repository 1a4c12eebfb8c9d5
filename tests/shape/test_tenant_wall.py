"""The modules that may access every tenant's rows: a new one must be listed here."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "payments_app"
MAY = {
    "kernel/database.py": "says what it is",
    "audit/heads.py": "says the head of each tenant's chain",
    "integrity/violations.py": "the operator lists breaks, and resolves one by its number",
    "payments/payers.py": "the retention of payers, a tenant at a time",
    "integrity/invariants.py": "asks of every payment what must hold",
    "payments/processor.py": "looks for what is due and writes by the ids that it has found; a row's tenant is its payment's",
    "payments/operations.py": "the operator's commands",
    "monitoring/backlog.py": "counts what waits, for the operator",
    "integrity/unreadable.py": "the operator sees which open payments can't be read",
    "payments/retention.py": "drops what is past its time",
    "integrity/checkpoints.py": "seals new events, an entry for each tenant",
    "monitoring/gauges.py": "counts and ages for /metrics; no row, no tenant's name",
    "integrity/verification.py": "the operator verifies and exports the record",
    "tenants/holds.py": "the operator sees who is held",
    "tenants/keys.py": "the operator revokes by a key's id",
    "tenants/rotation.py": "closes every secret under the newest key",
    "webhooks/deliveries.py": "drops what is past its time",
    "payments/outbox.py": "publishes each tenant's events in their order",
    "webhooks/claims.py": "claims and records for several tenants, by the ids that it has found",
    "tenants/registry.py": "the operator finds and lists tenants",
}


def test_only_these_say_every_tenant() -> None:
    say = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(
            isinstance(node, ast.Name) and node.id == "EVERY_TENANT"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert say == set(MAY)
