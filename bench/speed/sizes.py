"""Which sizes the speed suite runs."""

import os

import pytest


def sizes_or(default: tuple[int, ...]) -> tuple[int, ...]:
    """What the environment variable BENCH_SIZES says, or the default.

    Raises:
        pytest.UsageError: it holds something else than sizes of 2 or more.
    """
    wanted = os.environ.get("BENCH_SIZES", "")
    if not wanted:
        return default
    try:
        chosen = tuple(int(size) for size in wanted.split(","))
    except ValueError:
        chosen = ()
    if not chosen or min(chosen) < 2:
        raise pytest.UsageError(
            f"BENCH_SIZES: expected sizes of 2 or more, separated by commas; got {wanted!r}"
        )
    return chosen
