"""What can be wrong with a request about payments."""

from __future__ import annotations

from payments_app.kernel.errors import GatewayError


class PaymentNotFound(GatewayError):
    """No payment of this tenant and mode has this id; another tenant's looks the same."""

    code = "payment_not_found"


class ExternalIdTaken(GatewayError):
    """The tenant has used this external_id for an earlier payment."""

    code = "external_id_taken"


class CursorInvalid(GatewayError):
    """The cursor isn't one that a list of ours gave out."""

    code = "cursor_invalid"


class BreakNotFound(GatewayError):
    """No open break of an invariant has this number."""

    code = "break_not_found"


class RecoveryUnfinished(GatewayError):
    """Payments of a restored database haven't all been asked about yet."""

    code = "recovery_unfinished"
