"""The webhook resources: endpoints, deliveries, events."""
