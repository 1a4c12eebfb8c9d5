"""Errors of webhook endpoints, and of requests about them."""

from __future__ import annotations

from payments_app.kernel.errors import GatewayError


class EndpointNotFound(GatewayError):
    """No endpoint of this tenant and mode has this id."""

    code = "webhook_endpoint_not_found"


class DeliveryNotFound(GatewayError):
    """No delivery of this tenant and mode has this id."""

    code = "webhook_delivery_not_found"


class EndpointsTooMany(GatewayError):
    """The tenant has the maximum number of endpoints in this mode."""

    code = "webhook_endpoints_too_many"


class EndpointDisabled(GatewayError):
    """Nothing is sent to a disabled endpoint."""

    code = "webhook_endpoint_disabled"


class RotationRunning(GatewayError):
    """Two secrets sign already, until the time in `until`."""

    code = "webhook_rotation_running"
