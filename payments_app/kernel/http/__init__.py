"""HTTP to others: to providers, and to URLs that tenants gave."""
