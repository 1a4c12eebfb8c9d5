"""Webhooks: endpoints, the event feed, and signed deliveries, which tenants can also read."""
