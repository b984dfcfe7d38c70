"""What runs on a host: the Celery worker, its host loop, the launcher, and a supervisor for each attempt."""
