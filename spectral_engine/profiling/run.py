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

from spectral_engine.profiling.device import free_bytes, now, reset_peak, taken
from spectral_engine.profiling.records import Case, Profile, Row, check_case, method_of, nbytes
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

Progress = Callable[[Row], None]


def profile_cases(
    cases: Sequence[Case], device: str, repeats: int, progress: Progress | None = None
) -> Profile:
    """Run each case `repeats` times on a synthetic weight.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    _check_positive(repeats, "repeats")
    if not cases:
        raise ValueError("cases: expected at least one; got none")
    for case in cases:
        check_case(case)
    measured = (_measure(case, [_synthetic(case, device)] * repeats, device) for case in cases)
    return _profile(_report(measured, progress), device)


def profile_model(
    model: ModelShapes,
    method: str,
    sparsity: float,
    device: str,
    *,
    dtype: str | None = None,
    rank: int | None = None,
    blocks: int | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Run every layer of a network, at most `blocks` of those that repeat, on synthetic weights.

    `rank` is cut to the full rank of layers that have less.
    All of them are in memory at a time where they fit; else one block is, and it is run as often as
    the network has it.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    if blocks is not None:
        _check_positive(blocks, "blocks")
    runs = []
    for block in model.blocks:
        count = block.count if blocks is None else min(blocks, block.count)
        cases = [
            Case(
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

    def rows() -> Iterator[Row]:
        weights = _made(runs, device, distinct) if whole else None
        for index, (count, cases) in enumerate(runs):
            held = weights[index] if weights else _made([(count, cases)], device, distinct)[0]
            for case, copies in zip(cases, held, strict=True):
                yield _measure(case, copies * (count // len(copies)), device)

    return _profile(_report(rows(), progress), device, model.name, "whole" if whole else "block")


def trace(cases: Sequence[Case], device: str, path: Path) -> Path:
    """Write a torch.profiler trace of one call of each case, for a Chrome-style viewer."""
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
    rows: list[Row], device: str, model: str | None = None, resident: str | None = None
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


def _report(rows: Iterator[Row], progress: Progress | None) -> list[Row]:
    found = []
    for row in rows:
        found.append(row)
        if progress is not None:
            progress(row)
    return found


def _made(
    runs: Sequence[tuple[int, list[Case]]], device: str, distinct: Callable[[int], int]
) -> list[list[list[torch.Tensor]]]:
    """Weights of each run, of each of its cases."""
    return [
        [[_synthetic(case, device) for _ in range(distinct(count))] for case in cases]
        for count, cases in runs
    ]


def _synthetic(case: Case, device: str) -> torch.Tensor:
    """Normal entries of the size that trained weights have, the same for each shape."""
    dtype: torch.dtype = getattr(torch, case.dtype)
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(case.shape, device=device, dtype=dtype, generator=generator).mul_(0.02)


def _measure(case: Case, weights: list[torch.Tensor], device: str) -> Row:
    """A row; each of `weights` is run once, after a call that compiles."""
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
    return Row(
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


def _sparsify(case: Case, weight: torch.Tensor, device: str) -> tuple[int | None, float, float]:
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


def _check_positive(value: int, argument: str) -> None:
    if value < 1:
        raise ValueError(f"{argument}: expected at least 1; got {value}")
