"""The proof: the whole stack under faults, real clients that retry, and a verdict for each key.

`make chaos SEED=7 MINUTES=1` runs it. It uses the gateway as its clients, its operator and its
provider do, and knows nothing of its code.
"""
