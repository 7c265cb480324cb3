"""parrot_workers: processes that run requests. ``python -m parrot_workers`` is the engine worker."""
