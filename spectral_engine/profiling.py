"""How fast sparsification runs on the device at hand, beside a copy of the same array.

Each case takes turns with the copy, and its share of the copy's bandwidth is the median over
rounds. Bytes are those that must at least be moved: the budget reads the array, the draw reads and
writes it, and a low rank is read from its float32 factors; so GB/s and share never flatter.
"""

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import spectral_kernels
import torch

from spectral_engine.methods import resolve
from spectral_engine.model_shapes import ModelShapes
from spectral_engine.single import spectral_score

DTYPES = ("float16", "bfloat16", "float32", "float64")
PACKAGES = ("torch", "triton", "numba", "numpy")
#: Reads and writes of the array.
PASSES = 3
#: Machine instructions for an entry, of the float32 kernels on sm_90 (`bench/sass.py`): the
#: histogram, then the kernel that keeps the largest or the one that draws.
INSTRUCTIONS = {
    "auto": 18 + 12,
    "magnitude": 18 + 12,
    "randomized": 18 + 30,
    "principal": 30,
    "aligned": 30,
}
#: A model's weights are all made at once where they take up at most this share of free memory.
MEMORY_SHARE = 0.5
#: The side of the matrices whose product says how fast the device multiplies.
PRODUCT_SIDE = {"cpu": 1024, "cuda": 8192}

Progress = Callable[["Row"], None]


@dataclass(frozen=True)
class Case:
    """What is run; rank is None for the method's own, `label` names a layer of a model."""

    shape: tuple[int, ...]
    dtype: str
    method: str
    sparsity: float
    rank: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Row:
    """A case, measured.

    seconds: median of a call, without the truncated SVD, whose time is svd_seconds; copy_seconds:
    median of a copy of the same array. calls, total_seconds: how many were timed, and all of their
    time with SVDs. bytes, operations: see `PASSES` and `INSTRUCTIONS`, products and sums of the low
    rank included. share: of the copy's bandwidth. peak_bytes: of memory beyond what was there
    before the call, None where the system does not say.
    """

    case: Case
    rank: int | None
    seconds: float
    svd_seconds: float
    copy_seconds: float
    calls: int
    total_seconds: float
    bytes: int
    operations: int
    share: float
    peak_bytes: int | None

    @property
    def gb_per_s(self) -> float:
        """Bytes over seconds, in 10^9 a second."""
        return self.bytes / self.seconds / 1e9

    def to_dict(self) -> dict[str, Any]:
        """Plain values, flat."""
        row = asdict(self)
        return {**row.pop("case"), **row, "gb_per_s": self.gb_per_s}


@dataclass(frozen=True)
class Profile:
    """Rows of one run, and the two ceilings of the roofline.

    copy_bytes_per_s: the fastest copy of any row; products_per_s: floating-point operations a
    second of a large matrix product. resident: "whole" or "block", what of a model was in memory
    at a time; None for a sweep.
    """

    device: str
    versions: dict[str, str]
    rows: list[Row]
    copy_bytes_per_s: float
    products_per_s: float
    model: str | None = None
    resident: str | None = None

    @property
    def total_seconds(self) -> float:
        """All timed calls together, with their SVDs."""
        return sum(row.total_seconds for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "device": self.device,
            "versions": self.versions,
            "model": self.model,
            "resident": self.resident,
            "total_seconds": self.total_seconds,
            "copy_bytes_per_s": self.copy_bytes_per_s,
            "products_per_s": self.products_per_s,
            "rows": [row.to_dict() for row in self.rows],
        }


def pick_device(device: str) -> str:
    """ "cpu" or "cuda"; "auto" takes CUDA where torch finds it.

    Raises:
        ValueError: another name. RuntimeError: CUDA is asked for and not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda; got {device!r}")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise RuntimeError("device: expected a CUDA device; torch finds none")
    return "cuda" if found and device != "cpu" else "cpu"


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
        _check_case(case)
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
            _check_case(case)
        runs.append((count, cases))
    needed = sum(count * _nbytes(case) for count, cases in runs for case in cases)
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


def free_bytes(device: str) -> int:
    """Memory that is free on a device; 0 where the system does not say."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[0])
    return _proc("/proc/meminfo", "MemAvailable") or 0


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
    copied = max(2 * _nbytes(row.case) / row.copy_seconds for row in rows)
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
        peak_before = _reset_peak(device)
        rank, svd, own = _sparsify(case, weight, device)
        peak = _peak(device, peak_before)
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
    method = resolve(case.method)
    start = _now(device)
    rank, factors, mixture = spectral_score(weight, method, case.rank, case.sparsity)
    scored = _now(device)
    spectral_kernels.sparsify(
        weight,
        sparsity=case.sparsity,
        law=method.law,
        rescale=method.rescale,
        score=method.score,
        factors=factors,
        mixture=mixture,
    )
    stop = _now(device)
    return rank, scored - start if method.needs_low_rank else 0.0, stop - scored


def _copy(weight: torch.Tensor, target: torch.Tensor, device: str) -> float:
    start = _now(device)
    target.copy_(weight)
    return _now(device) - start


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _products_per_s(device: str, dtype: torch.dtype) -> float:
    side = PRODUCT_SIDE[device]
    left, right = (torch.randn((side, side), device=device, dtype=dtype) for _ in range(2))
    spent = []
    for _ in range(4):
        start = _now(device)
        torch.mm(left, right)
        spent.append(_now(device) - start)
    return 2 * side**3 / min(spent)


def _nbytes(case: Case) -> int:
    dtype: torch.dtype = getattr(torch, case.dtype)
    return int(torch.Size(case.shape).numel()) * dtype.itemsize


def _reset_peak(device: str) -> int | None:
    """Memory in use, from where a new peak is taken."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed
        return None
    return _proc("/proc/self/status", "VmRSS")


def _peak(device: str, before: int | None) -> int | None:
    if before is None:
        return None
    if device != "cpu":
        return int(torch.cuda.max_memory_allocated()) - before
    after = _proc("/proc/self/status", "VmHWM")
    return None if after is None else max(0, after - before)


def _proc(path: str, field: str) -> int | None:
    """A size that Linux reports, in bytes; None elsewhere."""
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    sizes = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return next((1024 * int(size) for size in sizes), None)


def _check_case(case: Case) -> None:
    resolve(case.method)
    if case.dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}; got {case.dtype!r}")
    if len(case.shape) < 2 or min(case.shape) < 1:
        raise ValueError(f"shape: expected two or more sizes of at least 1; got {case.shape}")
    spectral_kernels.entries_to_keep(1, case.sparsity)
    if case.rank is not None:
        smaller = min(case.shape[0], torch.Size(case.shape[1:]).numel())
        if not 1 <= case.rank <= smaller:
            raise ValueError(f"rank: expected 1 to {smaller} for {case.shape}; got {case.rank}")


def _check_positive(value: int, argument: str) -> None:
    if value < 1:
        raise ValueError(f"{argument}: expected at least 1; got {value}")
