"""The worker process: Celery tasks, their queues and a poller. No business decisions."""
