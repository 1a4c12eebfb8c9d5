"""What we tell tenants: endpoints, events, deliveries. Signed, numbered, and there to be read."""
