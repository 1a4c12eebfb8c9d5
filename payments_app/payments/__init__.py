"""Collections, and later payouts and refunds: one table, one engine."""
