"""Celery in: tasks, their queues and a poller. No decisions."""
