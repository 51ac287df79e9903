"""Which method, refit and budget keeps which real network working, and where none does.

    python -m bench.quality --packages FOLDER

Each network is a module with `load`, which gives a `Network`: the dense model, batches to calibrate
on, and a score against it on data apart. `grid` lists the settings, `run` measures them into a file
that a later run goes on with, `summary` says what the file holds, `results` writes it down.
"""
