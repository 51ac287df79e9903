"""Spectra: the leading singular triplets of one matrix, and what every weight of a network has.

A weight with at most `FULL_SIZE` rows or columns gets its whole spectrum from its Gram matrix,
a larger one its leading values by block Krylov iteration and a density of the rest. On the CPU the
weights are worked on side by side (`parallel`), elsewhere those of one shape in one batch.
"""

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from spectral_kernels.density import spectral_density
from spectral_kernels.svd import STREAM, randomized_svd, singular_values
from torch import nn

from spectral_engine.matrices import as_tensor, check_rank, frobenius_norm, largest_magnitude
from spectral_engine.parallel import for_each
from spectral_engine.selection import Selector
from spectral_engine.spectra_table import LayerSpectrum, Spectra
from spectral_engine.spectral_statistics import Values, estimated_statistics, statistics
from spectral_engine.weights import Weight, require_found, weights_of

Full = bool | Literal["auto"]

#: Up to this min(m, n) the whole spectrum is taken: 2048 x 2048 takes about a second on two cores.
FULL_SIZE = 2048
#: Working memory, in working precision, as a multiple of the matrix itself.
COPIES = 4
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Spectrum:
    """A ~ U diag(S) Vh: the leading triplets, of the array library that the matrix came in.

    U (..., m, rank), S (..., rank) descending, Vh (..., rank, n)
    error: (..., rank), an estimate of |sigma_i - S_i|, in the units of A; not a certain bound
    iterations: block products with A or its transpose; 0 where A was factored whole
    """

    U: Any
    S: Any
    Vh: Any
    error: Any
    iterations: int


def spectrum(
    weight: Any,
    rank: int = 64,
    *,
    tolerance: float | None = None,
    depth: int | None = None,
    seed: int = 0,
    stream: int = STREAM,
) -> Spectrum:
    """The leading `rank` singular triplets of a matrix (m, n), or of each of a batch (..., m, n).

    Args:
        weight: NumPy array, torch tensor, CuPy array or an array of any other library of the
            array API; float16 and bfloat16 (worked on, and returned, in float32), float32 or
            float64. A convolution's weight is a batch of its kernels here: reshape it to
            (shape[0], -1) for the matrix that `spectra` sees.
        rank: how many; with less in the matrix, min(m, n).
        tolerance: relative accuracy of every value, 1e-3 by default.
        depth: the most block Krylov steps; alone, their number.
        seed, stream: fix the test matrix and the signs, whatever the batch.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came; NaN or infinity
            in one matrix of a batch is named by its index.
    """
    given = isinstance(weight, np.ndarray) and weight.dtype.kind == "f"
    A = as_tensor(weight) if given and weight.ndim >= 2 else weight
    if isinstance(A, torch.Tensor):
        A = A.detach()
    if isinstance(rank, int) and not isinstance(rank, bool) and getattr(A, "ndim", 0) >= 2:
        rank = min(rank, *(max(size, 1) for size in A.shape[-2:]))
    found = randomized_svd(A, rank, tolerance=tolerance, depth=depth, seed=seed, stream=stream)
    U, S, Vh, error, iterations = found
    if isinstance(weight, np.ndarray):
        U, S, Vh, error = (np.asarray(x) for x in (U, S, Vh, error))
    return Spectrum(U, S, Vh, error, iterations)


def spectra(
    model: nn.Module | str | os.PathLike[str],
    rank: int = 64,
    *,
    tolerance: float = 1e-3,
    max_bytes: int = MAX_BYTES,
    progress: bool = True,
    full: Full = "auto",
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    seed: int = 0,
) -> Spectra:
    """The spectrum of every weight of a model or of a checkpoint, as a table.

    Every floating-point tensor of two or more dimensions is seen as the matrix (shape[0], -1):
    linear, convolution, embedding, attention and recurrent weights and plain parameters. A shared
    one comes once; what has no spectrum is in `.skipped` with the reason.

    Args:
        model: a module, or the path of a weight file or a Hugging Face style folder, of which one
            tensor at a time is read, or as many as `max_bytes` allows.
        rank: how many leading singular values are wanted, at most min(m, n) of each.
        tolerance: their relative accuracy.
        max_bytes: working memory, beside the model; one matrix is worked on whatever it takes.
        progress: a bar on stderr, if that is a terminal.
        full: "auto", the whole spectrum where min(m, n) <= 2048, of which the larger half and the
            leading values are good to `tolerance`; True, the whole spectrum of each to rounding;
            False, the leading values of each, and estimates of the rest.
        targets, ignore: globs over names, "re:..." or class names, as in `prune`.
        seed: of test matrices and start vectors.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came; a weight that
            holds NaN or infinity is named.
    """
    start = time.perf_counter()
    options = Options(rank, tolerance, full, seed)
    at_least_one("max_bytes", max_bytes)
    selector = Selector.of(targets, ignore)
    console = Console(stderr=True)
    with (
        weights_of(model, selector) as (weights, skipped),
        Progress(
            console=console, transient=True, disable=not (progress and console.is_terminal)
        ) as bar,
    ):
        require_found(weights, selector)
        task = bar.add_task("spectra", total=len(weights))
        rows: dict[str, LayerSpectrum] = {}

        def measure_batch(batch: list[Weight]) -> None:
            for row in measure(batch, options):
                rows[row.name] = row
            bar.advance(task, len(batch))

        run(measure_batch, weights, options, max_bytes)
    layers = [rows[weight.name] for weight in weights]
    return Spectra(rank, tolerance, layers, skipped, time.perf_counter() - start)


def at_least_one(name: str, value: Any) -> None:
    """TypeError unless `value` is an integer, ValueError unless it is 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer; got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected 1 or more; got {value}")


@dataclass(frozen=True)
class Options:
    """How spectra are taken; see `spectra`."""

    rank: int
    tolerance: float
    full: Full = "auto"
    seed: int = 0
    full_size: int = FULL_SIZE

    def __post_init__(self) -> None:
        check_rank(self.rank)
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, int | float):
            raise TypeError(f"tolerance: expected a number; got {self.tolerance!r}")
        if not (math.isfinite(self.tolerance) and self.tolerance > 0.0):
            raise ValueError(f"tolerance: expected a number above 0; got {self.tolerance!r}")
        if self.full not in (True, False, "auto"):
            raise ValueError(f"full: expected True, False or 'auto'; got {self.full!r}")

    def whole(self, shape: tuple[int, int]) -> bool:
        """Whether a matrix of this shape gets its whole spectrum."""
        smaller = min(shape)
        if self.full == "auto":
            return smaller <= self.full_size
        return bool(self.full) or self.rank >= smaller


def run(
    function: Callable[[list[Weight]], None],
    weights: list[Weight],
    options: Options,
    max_bytes: int,
) -> None:
    """Call function(batch) until every weight was in one.

    On the CPU a batch is one weight and several run side by side; on another device it holds
    weights of one shape and dtype, as many as `max_bytes` allows, one batch after the other.
    """

    def cost(weight: Weight) -> int:
        wide = weight.dtype == torch.float64 or options.full is True
        square = min(weight.matrix) ** 2 if options.whole(weight.matrix) else 0
        return COPIES * (8 if wide else 4) * (weight.size + square)

    for_each(
        function,
        [[weight] for weight in weights if weight.device.type == "cpu"],
        lambda batch: cost(batch[0]),
        max_bytes,
    )
    alike: dict[tuple[Any, ...], list[Weight]] = {}
    for weight in weights:
        if weight.device.type != "cpu":
            alike.setdefault((weight.matrix, weight.dtype, weight.device), []).append(weight)
    for group in alike.values():
        count = max(1, max_bytes // cost(group[0]))
        for first in range(0, len(group), count):
            function(group[first : first + count])


def measure(batch: list[Weight], options: Options) -> list[LayerSpectrum]:
    """One row for each weight of a batch of one shape, dtype and device."""
    start = time.perf_counter()
    shape = batch[0].matrix
    matrices = load(batch)
    rank = min(options.rank, *shape)
    require_finite(batch, matrices)
    found, resolution = known_values(matrices, options)
    spectra = _on_host(found)
    if resolution is not None:
        frobenius = [float(np.linalg.norm(values)) for values in spectra]
        read = [
            statistics(values, shape, norm, resolution * float(values[0]))
            for values, norm in zip(spectra, frobenius, strict=True)
        ]
    else:
        frobenius = [frobenius_norm(matrix) for matrix in matrices]
        density = spectral_density(matrices, seed=options.seed)
        nodes, weights = _on_host(density.nodes), _on_host(density.weights)
        read = [
            estimated_statistics(values, below, shares, shape, norm)
            for values, below, shares, norm in zip(spectra, nodes, weights, frobenius, strict=True)
        ]
    seconds = (time.perf_counter() - start) / len(batch)
    return [
        LayerSpectrum(
            name=weight.name,
            shape=weight.shape,
            dtype=str(weight.dtype).removeprefix("torch."),
            singular_values=tuple(values[:rank].tolist()),
            statistics=found_statistics,
            known=values,
            resolution=(resolution or 0.0) * float(values[0]),
            seconds=seconds,
            shared_with=weight.shared_with,
        )
        for weight, values, found_statistics in zip(batch, spectra, read, strict=True)
    ]


def load(batch: list[Weight]) -> torch.Tensor:
    """The matrices (b, m, n) of a batch; one alone is not copied."""
    loaded = [weight.load().reshape(weight.matrix) for weight in batch]
    return loaded[0][None] if len(loaded) == 1 else torch.stack(loaded)


def require_finite(batch: list[Weight], matrices: torch.Tensor) -> None:
    """ValueError that names the first weight of a batch with NaN or infinity."""
    for weight, matrix in zip(batch, matrices, strict=True):
        if not math.isfinite(largest_magnitude(matrix)):
            raise ValueError(f"model: {weight.name} holds NaN or infinity")


def known_values(matrices: torch.Tensor, options: Options) -> tuple[torch.Tensor, float | None]:
    """The singular values (..., k) that `options` ask for, and how well the smallest is known.

    That is over sigma_1, and None where only the leading values are known and not all.
    """
    *_, m, n = matrices.shape
    rank = min(options.rank, m, n)
    if options.whole((m, n)):
        return whole_spectrum(matrices, rank, options.tolerance, options.full is True)
    leading = randomized_svd(matrices, rank, tolerance=options.tolerance, seed=options.seed)
    return leading.S, None


def whole_spectrum(
    matrices: torch.Tensor, rank: int, tolerance: float, exact: bool
) -> tuple[torch.Tensor, float]:
    """All singular values (..., min(m, n)), and how well the smallest are known, over sigma_1.

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
