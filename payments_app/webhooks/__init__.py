"""What tenants are told."""
