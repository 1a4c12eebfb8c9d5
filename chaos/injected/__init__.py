"""What the harness puts into the gateway's processes by way of PYTHONPATH."""
