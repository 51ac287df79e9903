"""Batched truncated SVD on a device: this project's, by torch and by CuPy, beside torch's own.

A batch of matrices with the known singular values i^-0.7, the slow decay of weights, and singular
vectors from signed Hadamard matrices. torch.linalg.svdvals, which goes through a batch one by one,
is timed on one matrix and counted for all. torch.svd_lowrank is run at the cheapest of `SETTINGS`
whose worst relative error is no more than what is asked of this project's.
"""

import statistics
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from spectral_kernels.spectra import randomized_svd

from bench.gpu.timing import device_times

TOLERANCE = 1e-3
DECAY = -0.7
ROUNDS = 3
#: (columns beyond the rank as a share of it, power iterations), the cheaper first.
SETTINGS = (
    (0.25, 2), (0.25, 4), (1.0, 2), (0.25, 7), (1.0, 4), (1.0, 7), (0.25, 20), (1.0, 12), (1.0, 20),
)  # fmt: skip


def hadamard(side: int, device: str) -> torch.Tensor:
    """The orthogonal Hadamard matrix of a power of two."""
    H = torch.ones((1, 1), device=device)
    while len(H) < side:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H / side**0.5


def batch(count: int, side: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices (count, side, side), float32, and the singular values (side,) of each."""
    generator = torch.Generator().manual_seed(side)
    values = torch.arange(1, side + 1, dtype=torch.float64).pow(DECAY)
    S, H = values.float().to(device), hadamard(side, device)

    def signs() -> torch.Tensor:
        return (2 * torch.randint(0, 2, (side,), generator=generator) - 1).float().to(device)

    def shuffled() -> torch.Tensor:
        order = torch.randperm(side, generator=generator).to(device)
        return signs()[:, None] * H[:, order]

    return torch.stack([(shuffled() * S) @ shuffled().T for _ in range(count)]), values


def worst_error(S: torch.Tensor, values: torch.Tensor) -> float:
    """The largest relative error of leading singular values."""
    exact = values[: S.shape[-1]]
    return float((S.double().cpu() / exact - 1).abs().max())


def lowrank(A: torch.Tensor, rank: int, extra: float, iterations: int) -> torch.Tensor:
    """The leading values by torch.svd_lowrank."""
    columns = min(rank + round(extra * rank), A.shape[-1])
    torch.manual_seed(0)
    found: torch.Tensor = torch.svd_lowrank(A, columns, niter=iterations)[1]
    return found[..., :rank]


def lowrank_setting(
    A: torch.Tensor, rank: int, values: torch.Tensor, tolerance: float
) -> tuple[float, int]:
    """The cheapest of `SETTINGS` that is good enough on one matrix; the last one if none is."""
    for extra, iterations in SETTINGS:
        if worst_error(lowrank(A, rank, extra, iterations), values) <= tolerance:
            return extra, iterations
    return SETTINGS[-1]


def leading(A: torch.Tensor, rank: int, library: Any) -> torch.Tensor:
    """The leading values by this project's."""
    found: torch.Tensor = randomized_svd(A, rank, tolerance=TOLERANCE, library=library).S
    return found


def measure(count: int, side: int, rank: int, device: str, rounds: int) -> dict[str, Any]:
    """One row: milliseconds of the whole batch, worst relative errors, and speed-ups."""
    A, values = batch(count, side, device)
    extra, iterations = lowrank_setting(A[0], rank, values, TOLERANCE)
    calls = {
        "torch": partial(leading, A, rank, "own"),
        "svd_lowrank": partial(lowrank, A, rank, extra, iterations),
    }
    if device != "cpu" and find_spec("cupy") is not None:
        calls["cupy"] = partial(leading, A, rank, "cupy")
    errors = {name: worst_error(call(), values) for name, call in calls.items()}
    times = device_times(calls, device, rounds)
    spent = {name: statistics.median(seconds) for name, seconds in times.items()}
    one = device_times({"svdvals": partial(torch.linalg.svdvals, A[0])}, device, 1)
    spent["svdvals"] = count * one["svdvals"][0]
    ours = min(spent[name] for name in ("torch", "cupy") if name in spent)
    return {
        "operation": "svd",
        "shape": [count, side, side],
        "rank": rank,
        "svd_lowrank": {"columns": rank + round(extra * rank), "niter": iterations},
        "ms": {name: 1e3 * seconds for name, seconds in spent.items()},
        "error": errors,
        "speedup_svdvals": spent["svdvals"] / ours,
        "speedup_svd_lowrank": spent["svd_lowrank"] / ours,
    }


def rows(
    sizes: tuple[tuple[int, int, int], ...], device: str, deadline: float, rounds: int = ROUNDS
) -> Iterator[dict[str, Any]]:
    """A row for each (count, side, rank), the first one first, until the deadline."""
    for count, side, rank in sizes:
        row: dict[str, Any] = {"operation": "svd", "shape": [count, side, side], "rank": rank}
        if time.monotonic() > deadline:
            yield row | {"said": "left out: out of time"}
            continue
        try:
            yield measure(count, side, rank, device, rounds)
        except Exception as error:  # memory, a solver, a library that is not there
            yield row | {"said": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    name = f"svd {' x '.join(map(str, row['shape']))}, k = {row['rank']}"
    if "said" in row:
        return f"{name}: {row['said']}"
    spent = ", ".join(
        f"{who} {ms:.1f} ms" + (f" ({row['error'][who]:.0e})" if who in row["error"] else "")
        for who, ms in row["ms"].items()
    )
    return (
        f"{name}: {spent}; {row['speedup_svdvals']:.1f} x svdvals, "
        f"{row['speedup_svd_lowrank']:.1f} x svd_lowrank"
    )
