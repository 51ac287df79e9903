"""The device at hand: which it is, its clock, and the memory that is free or was taken on it."""

import time
from pathlib import Path

import torch

from spectral_engine._util.checks import one_of


def pick_device(device: str) -> str:
    """The device that is meant.

    Args:
        device: "cpu", "cuda", or "auto", which takes CUDA where torch finds it.

    Returns:
        "cpu" or "cuda".

    Raises:
        ValueError: another name. RuntimeError: CUDA is asked for and not there.
    """
    one_of("device", device, ("auto", "cpu", "cuda"))
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise RuntimeError("device: expected a CUDA device; torch finds none")
    return "cuda" if found and device != "cpu" else "cpu"


def free_bytes(device: str) -> int:
    """Memory that is free on a device; 0 where the system does not say."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info()[0])
    return _proc("/proc/meminfo", "MemAvailable") or 0


def now(device: str) -> float:
    """Seconds, once the device is done with all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak(device: str) -> int | None:
    """Forget the peak of memory so far; what is in use now, None where the system does not say."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed
        return None
    return _proc("/proc/self/status", "VmRSS")


def taken(device: str, before: int | None) -> int | None:
    """How far, in bytes, the peak since `reset_peak` rose above what was in use `before`."""
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
