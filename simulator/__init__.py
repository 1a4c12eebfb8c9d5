"""The provider simulator: MTN MoMo's sandbox over real HTTP, with its own ledger to check against.

It imports nothing of the gateway. `python -m simulator --help` says how to run it, and
docs/simulator.md describes the admin API, the faults and the settings.
"""
