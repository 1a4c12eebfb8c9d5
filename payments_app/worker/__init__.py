"""Celery in: doorbells answered, and a clock. No decisions."""
