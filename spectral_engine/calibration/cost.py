"""What a calibration will take, said before the work where it is long."""

import time
import warnings

import torch
from spectral_kernels.spectra import full_precision

from spectral_engine.calibration.stages import Stage, features_of

#: Seconds from which on they are said.
LONG = 60.0
#: Additions and products a second that any machine has; under it nothing is measured.
_SLOWEST = 2e9
_PROBE = 512


def say_if_long(
    passes: list[list[Stage]], max_samples: int | None, forward: float, asymmetric: bool
) -> None:
    """Warn, with the layers that take longest, where a calibration will take over a minute.

    Args:
        passes: the stages of each.
        max_samples: see `Calibration`.
        forward: seconds that the batches take through the model once.
        asymmetric: whether a dense model runs beside it, and its moments are gathered.
    """
    times = 2 if asymmetric else 1
    running = forward * len(passes) * times
    work = {}
    for stage in (stage for stages in passes for stage in stages):
        n, batch, _, device = features_of(stage)
        samples = stage.rows if max_samples is None else min(stage.rows, max_samples)
        work[stage.name] = (samples * n * n * (batch or 1) * (3 if asymmetric else 1), samples, n)
        if device.type != "cpu":
            return  # not timed: a device answers before it is done
    if running + sum(flops for flops, _, _ in work.values()) / _SLOWEST <= LONG:
        return
    rate = _rate()
    seconds = running + sum(flops for flops, _, _ in work.values()) / rate
    if seconds <= LONG:
        return
    longest = sorted(work.items(), key=lambda item: -item[1][0])[:3]
    layers = ", ".join(
        f"{name} {_minutes(flops / rate)} ({samples:,} samples of {n:,} features)"
        for name, (flops, samples, n) in longest
    )
    warnings.warn(
        f"calibration: about {_minutes(seconds)}, of which {_minutes(running)} in the model's own "
        f"forward; the longest layers: {layers}. Fewer batches, or max_samples, make it shorter",
        stacklevel=2,
    )


def _rate() -> float:
    """Additions and products a second in the sums of moments, on this machine now."""
    x = torch.ones(_PROBE, _PROBE)
    total = torch.zeros(_PROBE, _PROBE)
    best = float("inf")
    with full_precision(torch):
        for _ in range(3):
            start = time.perf_counter()
            total.addmm_(x.mT, x)
            best = min(best, time.perf_counter() - start)
    return 2 * _PROBE**3 / best


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
