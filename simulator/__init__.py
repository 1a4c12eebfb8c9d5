"""The providers' stand-in: MTN MoMo's sandbox over real HTTP, with a ledger of its own as referee.

It imports nothing of the gateway. `python -m simulator --help` tells how to run it, and
docs/simulator.md describes the admin API, the faults and the settings.
"""
