"""The whole of Maramoja on one machine: real PostgreSQL and Redis, then every process of ours.

`make run` and the tests use it; nothing in production imports it.
"""
