"""The chaos test: the whole stack under faults, clients that retry, and a verdict for each key.

`make chaos SEED=7 MINUTES=1` runs it. It uses the gateway only as its clients, its operator and
its provider do, and imports none of its code.
"""
