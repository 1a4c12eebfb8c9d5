"""Errors of requests about payments."""

from __future__ import annotations

from payments_app.kernel.errors import GatewayError


class PaymentNotFound(GatewayError):
    """No payment of this tenant and mode has this id; another tenant's looks the same."""

    code = "payment_not_found"


class ExternalIdTaken(GatewayError):
    """The tenant has used this external_id for an earlier payment."""

    code = "external_id_taken"


class ViolationNotFound(GatewayError):
    """No open violation of an invariant has this number."""

    code = "break_not_found"


class RecoveryUnfinished(GatewayError):
    """Some payments of a restored database have not been checked yet."""

    code = "recovery_unfinished"
