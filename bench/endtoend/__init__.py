"""End to end: from POST to the tenant's webhook, at load, beside the plain service in the same run."""
