"""How fast sparsification runs on the device at hand, beside a copy of the same array.

Each case takes turns with the copy, and its share of the copy's bandwidth is the median over
rounds. Bytes are those that must at least be moved: the budget reads the array, the draw reads and
writes it, and a low rank is read from its float32 factors; so GB/s and share never flatter.
"""

import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import spectral_kernels
import torch

from spectral_engine._util.checks import integer
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine.profiling.device import free_bytes, now, reset_peak, taken
from spectral_engine.profiling.records import (
    Measurement,
    Profile,
    ProfileCase,
    check_case,
    method_of,
    nbytes,
)
from spectral_engine.profiling.shapes import ModelShapes
from spectral_engine.sparsifying.score import spectral_score

PACKAGES = ("torch", "triton", "numba", "numpy")
#: Reads and writes of the array.
PASSES = 3
#: Machine instructions for an entry, of the float32 kernels on sm_90 (`bench/gpu/sass.py`): the
#: histogram, then the kernel that keeps the largest or the one that draws.
INSTRUCTIONS = {
    "magnitude": 18 + 12,
    "randomized": 18 + 30,
    "principal": 30,
    "aligned": 30,
}
#: A model's weights are all made at once where they take up at most this share of free memory.
MEMORY_SHARE = 0.5
#: The side of the matrices whose product says how fast the device multiplies.
PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}


def profile_cases(
    cases: Sequence[ProfileCase],
    device: str,
    repeats: int,
    progress: Progress[Measurement] = True,
) -> Profile:
    """Run each case several times on a synthetic weight.

    Args:
        cases: what is run, one or more.
        device: "cpu" or "cuda".
        repeats: timed calls of each case.
        progress: True for a bar on a terminal, False for none, or a function of each measurement.

    Returns:
        A measurement for each case, and the device's ceilings.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    repeats = integer("repeats", repeats, least=1)
    check_progress(progress)
    if not cases:
        raise ValueError("cases: expected at least one; got none")
    for case in cases:
        check_case(case)
    measured = (_measure(case, [_synthetic(case, device)] * repeats, device) for case in cases)
    return _profile(_reported(measured, progress, len(cases)), device)


def profile_model(
    model: ModelShapes,
    method: str,
    sparsity: float,
    device: str,
    *,
    dtype: str | None = None,
    rank: int | None = None,
    blocks: int | None = None,
    progress: Progress[Measurement] = True,
) -> Profile:
    """Run every layer of a network on synthetic weights.

    All of them are in memory at a time where they fit. Where they do not, one block is, and it is
    run as often as the network has it.

    Args:
        model: the shapes of its weights.
        method: by its name.
        sparsity: fraction of zeros.
        device: "cpu" or "cuda".
        dtype: one of `DTYPES`; None for the model's own.
        rank: of the method's low rank; a layer of a smaller full rank takes that.
        blocks: at most so many of the blocks that repeat; None for all.
        progress: True for a bar on a terminal, False for none, or a function of each measurement.

    Returns:
        A measurement for each layer of each block, and the device's ceilings.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    blocks = None if blocks is None else integer("blocks", blocks, least=1)
    check_progress(progress)
    runs = []
    for block in model.blocks:
        count = block.count if blocks is None else min(blocks, block.count)
        cases = [
            ProfileCase(
                layer.shape,
                dtype or model.dtype,
                method,
                sparsity,
                None if rank is None else min(rank, layer.full_rank),
                layer.name,
            )
            for layer in block.layers
        ]
        for case in cases:
            check_case(case)
        runs.append((count, cases))
    needed = sum(count * nbytes(case) for count, cases in runs for case in cases)
    whole = needed <= MEMORY_SHARE * free_bytes(device)

    def distinct(count: int) -> int:
        return count if whole else 1

    def rows() -> Iterator[Measurement]:
        weights = _made(runs, device, distinct) if whole else None
        for index, (count, cases) in enumerate(runs):
            held = weights[index] if weights else _made([(count, cases)], device, distinct)[0]
            for case, copies in zip(cases, held, strict=True):
                yield _measure(case, copies * (count // len(copies)), device)

    total = sum(len(cases) for _, cases in runs)
    found = _reported(rows(), progress, total)
    return _profile(found, device, model.name, "whole" if whole else "block")


def trace(cases: Sequence[ProfileCase], device: str, path: Path) -> Path:
    """Write a torch.profiler trace of one call of each case, for a Chrome-style viewer.

    Args:
        cases: what is run.
        device: "cpu" or "cuda".
        path: the JSON file.

    Returns:
        The path.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    weights = [_synthetic(case, device) for case in cases]
    for case, weight in zip(cases, weights, strict=True):
        _sparsify(case, weight, device)  # compiles
    with torch.profiler.profile(activities=activities) as recorded:
        for case, weight in zip(cases, weights, strict=True):
            with torch.profiler.record_function(f"{case.method} {case.label or case.shape}"):
                _sparsify(case, weight, device)
    recorded.export_chrome_trace(str(path))
    return path


def _profile(
    rows: list[Measurement], device: str, model: str | None = None, resident: str | None = None
) -> Profile:
    name = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device != "cpu":
        name = torch.cuda.get_device_name()
    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in PACKAGES if find_spec(package)}
    copied = max(2 * nbytes(row.case) / row.copy_seconds for row in rows)
    dtype = getattr(torch, rows[0].case.dtype)
    rate = _products_per_s(device, torch.float32 if device == "cpu" else dtype)
    return Profile(name, versions, rows, copied, rate, model, resident)


def _reported(
    rows: Iterator[Measurement], progress: Progress[Measurement], total: int
) -> list[Measurement]:
    found = []
    with reporting(progress, "measuring", total) as report:
        for row in rows:
            found.append(row)
            report(row)
    return found


def _made(
    runs: Sequence[tuple[int, list[ProfileCase]]], device: str, distinct: Callable[[int], int]
) -> list[list[list[torch.Tensor]]]:
    """The weights of each case of each run, `distinct(count)` of them."""
    return [
        [[_synthetic(case, device) for _ in range(distinct(count))] for case in cases]
        for count, cases in runs
    ]


def _synthetic(case: ProfileCase, device: str) -> torch.Tensor:
    """Normal entries of the size that trained weights have, the same for each shape."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(case.shape, device=device, dtype=dtype, generator=generator).mul_(0.02)


def _measure(case: ProfileCase, weights: list[torch.Tensor], device: str) -> Measurement:
    """The measurement of a case; each of `weights` is run once, after a call that compiles."""
    _sparsify(case, weights[0], device)
    target = torch.empty_like(weights[0])
    target.copy_(weights[0])
    seconds, svd_seconds, copies, rank = [], [], [], None
    peak: int | None = None
    for weight in weights:
        peak_before = reset_peak(device)
        rank, svd, own = _sparsify(case, weight, device)
        peak = taken(device, peak_before)
        seconds.append(own)
        svd_seconds.append(svd)
        copies.append(_copy(weight, target, device))
    m, n = case.shape[0], weights[0][0].numel()
    factors = 0 if rank is None else rank
    moved = PASSES * target.nbytes + (PASSES - 1) * 4 * factors * (m + n)
    operations = m * n * (INSTRUCTIONS[case.method] + (PASSES - 1) * 2 * factors)
    ratio = statistics.median(copy / own for copy, own in zip(copies, seconds, strict=True))
    return Measurement(
        case=case,
        rank=rank,
        seconds=statistics.median(seconds),
        svd_seconds=statistics.median(svd_seconds),
        copy_seconds=statistics.median(copies),
        calls=len(weights),
        total_seconds=sum(seconds) + sum(svd_seconds),
        bytes=moved,
        operations=operations,
        share=ratio * moved / (2 * target.nbytes),
        peak_bytes=peak,
    )


def _sparsify(
    case: ProfileCase, weight: torch.Tensor, device: str
) -> tuple[int | None, float, float]:
    """(rank, seconds of the SVD, seconds of the rest) of one call."""
    method = method_of(case)
    start = now(device)
    rank, factors, mixture = spectral_score(weight, method)
    scored = now(device)
    spectral_kernels.sparsify(
        weight,
        sparsity=case.sparsity,
        law=method.law,
        rescale=method.rescale,
        score=method.score,
        factors=factors,
        mixture=mixture,
    )
    stop = now(device)
    return rank, scored - start if method.needs_low_rank else 0.0, stop - scored


def _copy(weight: torch.Tensor, target: torch.Tensor, device: str) -> float:
    start = now(device)
    target.copy_(weight)
    return now(device) - start


def _products_per_s(device: str, dtype: torch.dtype) -> float:
    side = PRODUCT_SIDE[device]
    left, right = (torch.randn((side, side), device=device, dtype=dtype) for _ in range(2))
    spent = []
    for _ in range(4):
        start = now(device)
        torch.mm(left, right)
        spent.append(now(device) - start)
    return 2 * side**3 / min(spent)
