"""Spectra: the leading singular triplets of one matrix, and what every weight of a network has."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from spectral_kernels.spectra import SVD_STREAM, randomized_svd
from torch import nn

from spectral_engine.layers.selector import Selector
from spectral_engine.matrix.arrays import as_tensor
from spectral_engine.spectral.compute import MAX_BYTES, Full, Options, measure, run
from spectral_engine.spectral.table import LayerSpectrum, Spectra
from spectral_engine.spectral.weights import Weight, require_found, weights_of


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
    stream: int = SVD_STREAM,
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
    number = isinstance(rank, int | np.integer) and not isinstance(rank, bool)
    if number and getattr(A, "ndim", 0) >= 2:
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
    split: Any = None,
    seed: int = 0,
) -> Spectra:
    """The spectrum of every weight of a model or of a checkpoint, as a table.

    The rows of a model are those of a report of `prune`: each gate of a recurrent weight, q, k and
    v apart, whatever `register_layer` says. A grouped or depthwise convolution, or a mixture's
    experts, is one row: the matrix that it is has its groups for diagonal blocks, so that its
    singular values are those of all groups together; the Marchenko-Pastur edge is that of a group.
    Beyond what `prune` takes by default there are embeddings, and plain parameters of two or more
    dimensions as (shape[0], -1), as which every tensor of a file is seen. A shared one comes once;
    what has no spectrum is in `.skipped` with the reason.

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
        targets, ignore, split: which weights of a model, and which of them are several matrices,
            as in `prune`; of a file, globs over names or "re:...".
        seed: of test matrices and start vectors.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came; a weight that
            holds NaN or infinity is named.
    """
    start = time.perf_counter()
    options = Options(rank, tolerance, full, seed, max_bytes=max_bytes)
    selector = Selector.of(targets, ignore)
    console = Console(stderr=True)
    with (
        weights_of(model, selector, split) as (weights, skipped),
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

        run(measure_batch, weights, options)
    layers = [rows[weight.name] for weight in weights]
    return Spectra(rank, tolerance, layers, skipped, time.perf_counter() - start)
