"""What a calibrated pruning of a folder will take, from shapes alone: memory, time, disk.

Counted are the products of the forward passes, of the moments and of their factorisation; how many
of them a second this machine does is measured in a few milliseconds. Attention's own products, and
what a model does between its matrices, are not counted, so that long sequences take longer.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from spectral_kernels.spectra import full_precision

from spectral_engine.calibration.stages import Stage, features_of, held_bytes
from spectral_engine.recipe.refits import workspace_of
from spectral_engine.streaming.pieces import Piece, positions_in
from spectral_engine.streaming.run import Streaming

#: Forward passes through a block: to learn its order, about one in parts for moments, its outputs.
PASSES = 3.0
#: Bytes a second of a disk that is read and written.
_DISK = 500e6
#: Factorisation and updates of a refit, in products of n x n matrices.
SOLVES = 4.0


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    memory: bytes beside those of the program. largest: the piece that takes most of them.
    disk: bytes beside the target while it runs. seconds: on this machine as it is now.
    samples: positions of the batches.
    """

    memory: int
    largest: str
    disk: int
    seconds: float
    samples: int

    def to_dict(self) -> dict[str, float | str]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """One line."""
        return (
            f"about {_bytes(self.memory)} of memory, most of it at {self.largest}; "
            f"{_bytes(self.disk)} on the disk meanwhile; about {_duration(self.seconds)} for "
            f"{self.samples:,} positions"
        )


def estimated(streaming: Streaming) -> Estimate:
    """What a run will take, before anything is read.

    Args:
        streaming: the model, its plan and its calibration.
    """
    batches = streaming.calibration.batches
    samples = [positions_in(batch) for batch in batches]
    sizes = {
        piece.name: streaming.bytes_without_moments(piece) + _moments(streaming, piece)
        for piece in streaming.pieces
    }
    largest = max(sizes, key=lambda name: sizes[name])
    hidden = max((piece.width for piece in streaming.pieces if piece.block), default=0)
    outputs = 2 * sum(samples) * hidden * streaming.weights.dtype.itemsize
    pruned = sum(
        layer.parameter.numel() * layer.parameter.element_size() for layer in streaming.plan.layers
    )
    weights = sum(piece.bytes for piece in streaming.pieces)
    return Estimate(
        sizes[largest],
        largest,
        pruned + outputs,
        _seconds(streaming, sum(samples)) + (3 * weights + 2 * pruned) / _DISK,
        sum(samples),
    )


def _stages(streaming: Streaming, piece: Piece) -> Sequence[Stage]:
    return [
        Stage([request.layer], [], workspace=workspace_of(request.refit, request.low_rank))
        for request in streaming.shares.requests_of(piece)
    ]


def _moments(streaming: Streaming, piece: Piece) -> int:
    stages = _stages(streaming, piece)
    if streaming.calibration.sequential is False:
        return held_bytes(list(stages))
    return max((held_bytes([stage]) for stage in stages), default=0)


def _seconds(streaming: Streaming, samples: int) -> float:
    """Of all products, at the rate of this machine."""
    work = 0.0
    for piece in streaming.pieces:
        if piece.block:
            entries = sum(one.numel() for *_, one in piece.parameters() if one.ndim > 1)
            work += PASSES * 2 * samples * entries
        seen = set()
        for stage in _stages(streaming, piece):
            n, batch, _, _ = features_of(stage)
            layer = stage.layers[0]
            taken = min(samples, streaming.calibration.max_samples or samples)
            if n not in seen:  # layers of one width mostly see the same inputs
                work += taken * n * n * (batch or 1)
            seen.add(n)
            if stage.workspace.copies:
                work += SOLVES * 2 * n**2 * (n + layer.parameter.numel() / n)
    return work / _rate(streaming.weights.dtype)


def _rate(dtype: torch.dtype) -> float:
    """Additions and products a second in matrices of a dtype, on this machine now."""
    x = torch.ones(512, 512, dtype=dtype)
    best = math.inf
    with full_precision(torch):
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(x, x)
            best = min(best, time.perf_counter() - start)
    return 2 * 512**3 / best


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
