"""A task's jobs: run in parallel, kept in a cache, started from a trained or a new network."""
