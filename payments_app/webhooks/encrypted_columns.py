"""The encrypted columns with endpoints' secrets, for `flask secrets rotate`."""

from __future__ import annotations

from typing import Final

from payments_app.tenants.rotation import EncryptedColumn
from payments_app.webhooks.model import WebhookEndpoint, about_secret

WEBHOOK_ENCRYPTED_COLUMNS: Final = tuple(
    EncryptedColumn(
        "webhook_endpoint",
        WebhookEndpoint,
        WebhookEndpoint.id,
        WebhookEndpoint.tenant_id,
        secret,
        (WebhookEndpoint.tenant_id, WebhookEndpoint.id),
        about_secret,
    )
    for secret in (WebhookEndpoint.secret, WebhookEndpoint.previous_secret)
)
