"""Which tenant's rows each route and each command may reach. A missing one fails the suite.

A new route gets a rule, and with it the attacks of tests/isolation/attacks.py. If no rule fits,
it needs a new rule with attacks of its own.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Rule(StrEnum):
    """How a route chooses the rows that it shows or changes."""

    PUBLIC = "the same for everyone"
    BY_ID = "tenant: by its id in the path"
    OPERATORS = "the operator's, by the network that asks: to a tenant it isn't there"
    LIST = "tenant: a list"
    WHOLE_LIST = "tenant: a list without filters"
    CREATE = "tenant: makes something of its own"
    CALLBACK = "a stranger's word about a reference"


# (method, route) → rule. HEAD goes with GET, and OPTIONS with all: IMPLIED.
ROUTES: Final[dict[tuple[str, str], Rule]] = {
    ("GET", "/openapi.json"): Rule.PUBLIC,
    ("GET", "/problems/<code>"): Rule.PUBLIC,
    ("GET", "/health"): Rule.PUBLIC,
    ("GET", "/health/live"): Rule.PUBLIC,
    ("GET", "/health/ready"): Rule.PUBLIC,
    ("GET", "/metrics"): Rule.OPERATORS,
    ("GET", "/docs"): Rule.PUBLIC,
    ("GET", "/docs/start.js"): Rule.PUBLIC,
    ("GET", "/docs/assets/<name>"): Rule.PUBLIC,
    ("POST", "/api/v1/payments"): Rule.CREATE,
    ("GET", "/api/v1/payments"): Rule.LIST,
    ("GET", "/api/v1/payments/<uuid:payment_id>"): Rule.BY_ID,
    ("GET", "/api/v1/payments/<uuid:payment_id>/events"): Rule.BY_ID,
    ("GET", "/api/v1/events"): Rule.WHOLE_LIST,
    ("GET", "/api/v1/webhook-endpoints"): Rule.WHOLE_LIST,
    ("POST", "/api/v1/webhook-endpoints"): Rule.CREATE,
    ("GET", "/api/v1/webhook-endpoints/<uuid:endpoint_id>"): Rule.BY_ID,
    ("PATCH", "/api/v1/webhook-endpoints/<uuid:endpoint_id>"): Rule.BY_ID,
    ("DELETE", "/api/v1/webhook-endpoints/<uuid:endpoint_id>"): Rule.BY_ID,
    ("POST", "/api/v1/webhook-endpoints/<uuid:endpoint_id>/rotate-secret"): Rule.BY_ID,
    ("POST", "/api/v1/webhook-endpoints/<uuid:endpoint_id>/test"): Rule.BY_ID,
    ("POST", "/api/v1/webhook-endpoints/<uuid:endpoint_id>/resend"): Rule.BY_ID,
    ("GET", "/api/v1/webhook-endpoints/<uuid:endpoint_id>/deliveries"): Rule.BY_ID,
    ("GET", "/api/v1/webhook-deliveries/<uuid:delivery_id>"): Rule.BY_ID,
    ("POST", "/api/v1/webhook-deliveries/<uuid:delivery_id>/resend"): Rule.BY_ID,
    ("POST", "/callbacks/<provider>/<reference>"): Rule.CALLBACK,
    ("PUT", "/callbacks/<provider>/<reference>"): Rule.CALLBACK,
}
IMPLIED: Final = frozenset({"HEAD", "OPTIONS"})


class Of(StrEnum):
    """Whose rows a command shows or changes. Only operators run them, and may see every tenant."""

    NOBODY = "of no tenant"
    ALL = "of every tenant, on purpose"
    TENANT = "of the tenant that it names, and nobody else"
    ID = "of the one thing whose id it names, whosever it is"
    # Both: the id must be the tenant's. A command with a tenant and an id has no other rule.
    TENANT_AND_ID = "of the tenant's thing of that id"


COMMANDS: Final[dict[str, Of]] = {
    "audit export": Of.TENANT,
    "audit list": Of.TENANT,
    "audit verify": Of.TENANT,
    "payers erase": Of.TENANT,
    "payers find": Of.TENANT,
    "doctor": Of.ALL,
    "invariants check": Of.ALL,
    "invariants list": Of.TENANT,
    "invariants resolve": Of.ID,
    "keys issue": Of.TENANT,
    "keys list": Of.TENANT,
    "keys revoke": Of.ID,
    "keys rotate": Of.ID,
    "payments explain": Of.ID,
    "payments list": Of.TENANT,
    "payments recheck": Of.ID,
    "payments show": Of.ID,
    "providers check": Of.TENANT,
    "providers list": Of.TENANT,
    "providers set": Of.TENANT,
    "recovery begin": Of.ALL,
    "recovery finish": Of.ALL,
    "recovery status": Of.ALL,
    "secrets generate-key": Of.NOBODY,
    "secrets rotate": Of.ALL,
    "tenants create": Of.NOBODY,
    "tenants hold": Of.TENANT,
    "tenants list": Of.ALL,
    "tenants release": Of.TENANT,
    "tenants resume": Of.TENANT,
    "tenants set": Of.TENANT,
    "tenants show": Of.TENANT,
    "tenants suspend": Of.TENANT,
    "webhooks add": Of.TENANT,
    "webhooks deliveries": Of.TENANT_AND_ID,
    "webhooks list": Of.TENANT,
    "webhooks listen": Of.TENANT,
    "webhooks remove": Of.TENANT_AND_ID,
    "webhooks resend": Of.TENANT_AND_ID,
    "webhooks rotate": Of.TENANT_AND_ID,
    "webhooks set": Of.TENANT_AND_ID,
    "webhooks tail": Of.TENANT,
    "webhooks test": Of.TENANT_AND_ID,
}
# Groups and commands of Flask and its extensions: they touch no row of a tenant.
NOT_OURS: Final = frozenset({"db", "openapi", "routes", "run", "shell"})
