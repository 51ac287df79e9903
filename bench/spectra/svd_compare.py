"""Singular values side by side: this project's against scikit-learn's and torch's, in one run.

    python bench/spectra/svd_compare.py [--size 2048] [--rank 64] [--repeats 3] [--cpu-time]

The matrix is size x size, float32, with singular values i^-0.7 (the slow decay of a weight). A row
gives the best wall time of `repeats` runs, the worst relative error over the leading `rank` values,
and how many times faster than `torch.linalg.svdvals` and than scikit-learn's randomized_svd at
n_iter=7 it is. The rows take turns within each repeat, so that a busy moment of the machine falls
on all of them alike. `--cpu-time` measures processor time on one thread instead, which other work
on the machine hardly disturbs. The row "floor" finds nothing: it is the products with blocks of the
default width that the Krylov space needs before its worst error is under 2e-3, and no other work.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.utils.extmath import randomized_svd as sklearn_svd
from spectral_kernels.spectra import default_blocks, randomized_svd, singular_values
from threadpoolctl import threadpool_limits

SVDVALS = "torch.linalg.svdvals"
SKLEARN = "scikit-learn randomized_svd, n_iter=7"
#: Worst error of the leading 64 values: 6e-4 after 12 products of 32 columns, 2.6e-3 after 11.
PRODUCTS = 12


def slow_decay(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A float32 matrix and its singular values i^-0.7."""
    generator = np.random.default_rng(0)
    U, V = (np.linalg.qr(generator.standard_normal((size, size)))[0] for _ in range(2))
    values = np.arange(1.0, size + 1) ** -0.7
    return ((U * values) @ V.T).astype(np.float32), values


def leading_values(A: Any, rank: int, tolerance: float) -> Any:
    """S of this project's randomized_svd."""
    return randomized_svd(A, rank, tolerance=tolerance).S


def products_alone(A: np.ndarray, rank: int) -> np.ndarray:
    """Products with A and A^T in turns, and nothing else; NaN for the values it does not find."""
    V = np.ones((A.shape[1], default_blocks(rank)[0]), dtype=A.dtype)
    for half_step in range(PRODUCTS):
        V = (A.T if half_step % 2 else A) @ V
    return np.full(rank, np.nan)


def contestants(A: np.ndarray, rank: int) -> dict[str, Callable[[], Any]]:
    """What is timed: a name and a call that returns at least `rank` leading values."""
    tensor = torch.from_numpy(A)
    calls: dict[str, Callable[[], Any]] = {
        SVDVALS: lambda: torch.linalg.svdvals(tensor),
        "torch.linalg.svd": lambda: torch.linalg.svd(tensor, full_matrices=False).S,
        SKLEARN: lambda: sklearn_svd(A, rank, n_iter=7, random_state=0)[1],
        "scikit-learn randomized_svd, n_iter=2": lambda: sklearn_svd(
            A, rank, n_iter=2, random_state=0
        )[1],
        "torch.svd_lowrank, niter=7": lambda: torch.svd_lowrank(tensor, rank + 16, niter=7)[1],
    }
    calls[f"floor: {PRODUCTS} products alone"] = lambda: products_alone(A, rank)
    for library, X in (("torch", tensor), ("numpy", A)):
        for tolerance in (2e-3, 1e-3, 1e-4):
            name = f"randomized_svd to {tolerance:g}, {library}"
            calls[name] = partial(leading_values, X, rank, tolerance)
        for method in ("gram", "auto"):
            calls[f"singular_values {method}, {library}"] = partial(singular_values, X, method)
    return calls


def measure(
    calls: dict[str, Callable[[], Any]],
    exact: np.ndarray,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, tuple[float, float]]:
    """Best seconds and worst relative error of each call."""
    best = dict.fromkeys(calls, float("inf"))
    error: dict[str, float] = {}
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            S = call()
            best[name] = min(best[name], clock() - start)
            S = np.asarray(S, dtype=np.float64)[: len(exact)]
            error[name] = float(np.max(np.abs(S / exact - 1)))
    return {name: (best[name], error[name]) for name in calls}


def main() -> None:
    """Read the options and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    if options.cpu_time:
        torch.set_num_threads(1)
    with threadpool_limits(1 if options.cpu_time else None):
        report(options)


def report(options: argparse.Namespace) -> None:
    """Measure and print the table."""
    A, values = slow_decay(options.size)
    randomized_svd(torch.from_numpy(A[:300, :300].copy()), 8)  # load the libraries' kernels
    clock = time.process_time if options.cpu_time else time.perf_counter
    calls = contestants(A, options.rank)
    rows = measure(calls, values[: options.rank], options.repeats, clock)
    print(
        f"{options.size} x {options.size}, float32, sigma_i = i^-0.7, leading {options.rank}; "
        f"{'processor' if options.cpu_time else 'wall'} time, {torch.get_num_threads()} threads"
    )
    print(f"{'':42}{'ms':>9}{'worst error':>13}{'x svdvals':>11}{'x sklearn':>11}")
    for name, (seconds, error) in rows.items():
        print(
            f"{name:42}{1e3 * seconds:9.0f}{error:13.1e}"
            f"{rows[SVDVALS][0] / seconds:11.1f}{rows[SKLEARN][0] / seconds:11.1f}"
        )


if __name__ == "__main__":
    main()
