"""Services that ours is compared with: small, they accept a payment and promise less or nothing.

Each is a WSGI file with `app`, served by the same gunicorn, on tables of their own (`tables.sql`).
"""
