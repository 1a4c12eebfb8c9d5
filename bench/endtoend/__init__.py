"""End to end: from POST to the tenant's webhook under load, and the plain service in the same run."""
