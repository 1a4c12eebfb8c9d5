"""Code that the harness puts into the gateway's processes by PYTHONPATH."""
