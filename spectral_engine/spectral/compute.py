"""How the spectra of weights are computed: in which batches, by which method, in how much memory.

A weight with at most `full_size` rows or columns gets its whole spectrum, from its Gram matrix. A
larger one gets its leading values by block Krylov iteration, and a density of the rest. On the CPU
several weights are worked on side by side (`threads.for_each`); on another device the weights of
one shape are one batch. A weight of several blocks, such as a grouped convolution, has the values
of all its blocks.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from spectral_kernels.spectra import randomized_svd, singular_values, spectral_density

from spectral_engine._util.checks import integer, number
from spectral_engine._util.threads import for_each
from spectral_engine.distributed.groups import group_of, sharing_group
from spectral_engine.distributed.owners import Made, by_owners
from spectral_engine.matrix.arrays import frobenius_norm, largest_magnitude
from spectral_engine.spectral.power_law import Values
from spectral_engine.spectral.statistics import estimated_statistics, statistics
from spectral_engine.spectral.table import LayerSpectrum
from spectral_engine.spectral.weights import Weight

#: What is found of a weight.
Row = TypeVar("Row")
Full = bool | Literal["auto"]

#: Up to this min(m, n) the whole spectrum is taken: 2048 x 2048 takes about a second on two cores.
FULL_SIZE = 2048
#: Working memory, in working precision, as a multiple of the matrix itself.
COPIES = 4
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class SpectraOptions:
    """How spectra are computed, checked once.

    rank, tolerance, full, seed, max_bytes: see `spectra`
    full_size: with full="auto", the largest min(m, n) of which the whole spectrum is computed

    Raises TypeError or ValueError, which name the argument, what was expected and what came.
    """

    rank: int
    tolerance: float
    full: Full = "auto"
    seed: int = 0
    full_size: int = FULL_SIZE
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        checked = {
            "rank": integer("rank", self.rank, least=1),  # a plain int, for JSON
            "tolerance": number("tolerance", self.tolerance, above=0.0),
            "seed": integer("seed", self.seed, least=0, most=(1 << 64) - 1),
            "max_bytes": integer("max_bytes", self.max_bytes, least=1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        named = isinstance(self.full, str) and self.full == "auto"
        if not (named or isinstance(self.full, bool)):
            raise ValueError(f"full: expected True, False or 'auto'; got {self.full!r}")

    def whole(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix of this shape gets its whole spectrum."""
        smaller = min(shape)
        if self.full == "auto":
            return smaller <= self.full_size
        return bool(self.full) or self.rank >= smaller

    def cost(self, shape: tuple[int, int], dtype: torch.dtype) -> int:
        """Bytes of working memory for one matrix."""
        wide = dtype == torch.float64 or self.full is True
        square = min(shape) ** 2 if self.whole(shape) else 0
        return COPIES * (8 if wide else 4) * (shape[0] * shape[1] + square)


def for_each_batch(
    measure: Callable[[list[Weight]], Sequence[Row]],
    take: Callable[[Weight, Row], None],
    weights: list[Weight],
    options: SpectraOptions,
) -> None:
    """Measure every weight in some batch, and take what is found.

    On the CPU a batch is one weight and several run side by side; on another device it holds
    weights of one shape and dtype, as many as `max_bytes` allows, one batch after the other. Of
    sharded weights each is measured by one process, and by `share_work` so are all; every process
    takes what is found.

    Args:
        measure: from a batch to what is found of each weight. take: called with each, in no order.
    """

    def cost(weight: Weight) -> int:
        return weight.blocks * options.cost(weight.matrix, weight.dtype)

    def function(batch: list[Weight]) -> None:
        for weight, row in zip(batch, measure(batch), strict=True):
            take(weight, row)

    sharing = sharing_group()
    shared = [weight for weight in weights if sharing or weight.sharded is not None]
    if shared:
        group = group_of(one.sharded for one in shared if one.sharded is not None) or sharing
        _by_owners(measure, take, shared, list(map(cost, shared)), group)
        weights = [] if sharing else [weight for weight in weights if weight.sharded is None]
    for_each(
        function,
        [[weight] for weight in weights if weight.device.type == "cpu"],
        lambda batch: cost(batch[0]),
        options.max_bytes,
    )
    alike: dict[tuple[Any, ...], list[Weight]] = {}
    for weight in weights:
        if weight.device.type != "cpu":
            kind = (weight.matrix, weight.blocks, weight.dtype, weight.device)
            alike.setdefault(kind, []).append(weight)
    for group in alike.values():
        count = max(1, options.max_bytes // cost(group[0]))
        for first in range(0, len(group), count):
            function(group[first : first + count])


def _by_owners(
    measure: Callable[[list[Weight]], Sequence[Row]],
    take: Callable[[Weight, Row], None],
    weights: Sequence[Weight],
    costs: Sequence[float],
    group: Any,
) -> None:
    """Each weight is measured by one process of a group; where it is sharded, all gather it."""

    def ready(index: int, owner: int) -> torch.Tensor | None:
        return None if weights[index].sharded is None else weights[index].load()

    def work(index: int, whole: torch.Tensor | None) -> Made:
        weight = weights[index]
        own = weight if whole is None else replace(weight, load=lambda: whole)
        return Made([], measure([own])[0])

    for index, made in by_owners(costs, ready, work, group, torch.device("cpu")):
        take(weights[index], made.plain)


def measure(batch: list[Weight], options: SpectraOptions) -> list[LayerSpectrum]:
    """One row for each weight of a batch of one shape, dtype and device."""
    start = time.perf_counter()
    shape, blocks = batch[0].matrix, batch[0].blocks
    matrices = load_batch(batch)
    require_finite(batch, matrices)
    spectra, resolution = known_values(matrices, options)
    if resolution is not None:
        read = [
            statistics(values, shape, norm_of_values(values), resolution * float(values[0]))
            for values in spectra
        ]
    else:
        read = [
            estimated_statistics(values, nodes, weights, shape, norm, blocks)
            for values, nodes, weights, norm in zip(
                spectra, *density(matrices, options), map(norm_of, matrices), strict=True
            )
        ]
    seconds = (time.perf_counter() - start) / len(batch)
    return [
        LayerSpectrum(
            name=weight.name,
            shape=weight.shape,
            dtype=str(weight.dtype).removeprefix("torch."),
            singular_values=tuple(values[: options.rank].tolist()),
            statistics=found,
            known=values,
            count=weight.count,
            resolution=(resolution or 0.0) * float(values[0]),
            seconds=seconds,
            shared_with=weight.shared_with,
        )
        for weight, values, found in zip(batch, spectra, read, strict=True)
    ]


def load_batch(batch: list[Weight]) -> torch.Tensor:
    """The matrices (b, blocks, m, n) of a batch; one alone is not copied."""
    loaded = [weight.load() for weight in batch]
    return loaded[0][None] if len(loaded) == 1 else torch.stack(loaded)


def require_finite(batch: list[Weight], matrices: torch.Tensor) -> None:
    """ValueError that names the first weight of a batch with NaN or infinity."""
    for weight, own in zip(batch, matrices, strict=True):
        if not math.isfinite(largest_magnitude(own)):
            raise ValueError(f"model: {weight.name} holds NaN or infinity")


def runs(matrices: torch.Tensor, options: SpectraOptions) -> Iterator[torch.Tensor]:
    """Matrices (b, m, n) in runs of as many as `max_bytes` allows, or of one."""
    m, n = matrices.shape[-2:]
    step = max(1, options.max_bytes // options.cost((m, n), matrices.dtype))
    for first in range(0, len(matrices), step):
        yield matrices[first : first + step]


def known_values(matrices: torch.Tensor, options: SpectraOptions) -> tuple[Values, float | None]:
    """The singular values that `options` ask for, of each of several block-diagonal matrices.

    Args:
        matrices: (b, blocks, m, n), the blocks of each of b matrices.
        options: how many are wanted, and how accurately.

    Returns:
        values: (b, k), descending, of all blocks of each matrix. The `rank` leading ones of all
            blocks are among the `rank` leading ones of each block.
        resolution: how well the smallest is known, as a multiple of sigma_1; None where only the
            leading values are known.
    """
    b, blocks, m, n = matrices.shape
    rank = min(options.rank, m, n)
    resolution: float | None = None
    found: list[torch.Tensor] = []
    for some in runs(matrices.flatten(0, 1), options):
        if options.whole((m, n)):
            values, reached = whole_spectrum(some, rank, options.tolerance, options.full is True)
            resolution = max(resolution or 0.0, reached)
        else:
            values = randomized_svd(some, rank, tolerance=options.tolerance, seed=options.seed).S
        found.append(values)
    spectra = _on_host(torch.cat(found)).reshape(b, -1)
    if blocks > 1:
        spectra = np.sort(spectra, axis=1)[:, ::-1]
    if resolution is None:
        # A copy: a view would keep the values of all blocks alive.
        spectra = spectra[:, : min(options.rank, blocks * min(m, n))].copy()
    return spectra, resolution


def density(matrices: torch.Tensor, options: SpectraOptions) -> tuple[Values, Values]:
    """Nodes and weights (b, k) of the density of all singular values of each (b, blocks, m, n)."""
    b, blocks = matrices.shape[:2]
    found = [
        spectral_density(some, seed=options.seed) for some in runs(matrices.flatten(0, 1), options)
    ]
    nodes = _on_host(torch.cat([one.nodes for one in found])).reshape(b, -1)
    weights = _on_host(torch.cat([one.weights for one in found])).reshape(b, -1)
    return nodes, weights / blocks


def norm_of_values(values: Values) -> float:
    """||W||_F from all singular values, descending, whose squares may leave float64's range."""
    first = float(values[0])
    return first * float(np.linalg.norm(values / first)) if first > 0.0 else 0.0


def norm_of(blocks: torch.Tensor) -> float:
    """||W||_F of the matrix that has blocks (b, m, n) on its diagonal."""
    return math.hypot(*(frobenius_norm(block) for block in blocks))


def whole_spectrum(
    matrices: torch.Tensor, rank: int, tolerance: float, exact: bool
) -> tuple[torch.Tensor, float]:
    """All singular values of each matrix.

    Args:
        matrices: (..., m, n).
        rank: how many of the leading values must be good to `tolerance`.
        tolerance: relative.
        exact: all values are wanted to rounding.

    Returns:
        values: (..., min(m, n)), descending.
        resolution: how well the smallest is known, as a multiple of sigma_1.

    An eigenvalue of the Gram matrix in float32 is off by about d = eps sqrt(m + n) sigma_1^2, and
    sigma_i by d / (2 sigma_i): enough for the leading `rank` values and the larger half, unless
    they fall below sqrt(d / (2 tolerance)). Then, or where `exact`, the Gram matrix is in float64
    (for float64 the SVD is taken), and all values are good to rounding.
    """
    *_, m, n = matrices.shape
    d = torch.finfo(torch.float32).eps * math.sqrt(m + n)
    if not exact and matrices.dtype != torch.float64:
        values: torch.Tensor = singular_values(matrices, method="gram")
        needed = max(rank, (min(m, n) + 1) // 2)
        if bool((values[..., needed - 1] >= values[..., 0] * math.sqrt(d / 2 / tolerance)).all()):
            return values, math.sqrt(d)
    values = singular_values(matrices)
    return values, float(torch.finfo(values.dtype).eps) * math.sqrt(m + n)


def _on_host(values: torch.Tensor) -> Values:
    host: Values = values.double().cpu().numpy()
    return host
