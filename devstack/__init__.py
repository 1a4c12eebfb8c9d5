"""All of Maramoja on one machine: real PostgreSQL and Redis, and every process of ours.

`make run` and the tests use it; nothing in production imports it.
"""
