"""Gauges and backlog: what the stored rows say about the state of the gateway."""
