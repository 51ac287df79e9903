"""The device at hand: which it is, its clock, and the memory that is free or was taken on it."""

import time
from pathlib import Path

import torch


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
    """Memory in use, from where a new peak is taken."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed
        return None
    return _proc("/proc/self/status", "VmRSS")


def taken(device: str, before: int | None) -> int | None:
    """Bytes that the peak since `reset_peak` rose above what was in use then."""
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
