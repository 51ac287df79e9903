"""The tasks, one a file; each has `run(settings) -> Result`."""
