"""Spectra: the leading singular triplets of one matrix, and what every weight of a network has."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from spectral_kernels.spectra import SVD_STREAM, randomized_svd
from torch import nn

from spectral_engine._util.checks import integer
from spectral_engine._util.progress import Progress, check_progress, reporting
from spectral_engine._util.text import natural
from spectral_engine.layers.selector import Selector
from spectral_engine.matrix.arrays import as_tensor
from spectral_engine.spectral.compute import (
    MAX_BYTES,
    Full,
    SpectraOptions,
    for_each_batch,
    measure,
)
from spectral_engine.spectral.table import LayerSpectrum, Spectra
from spectral_engine.spectral.weights import Weight, require_found, weights_of


@dataclass(frozen=True)
class Spectrum:
    """The leading singular triplets of a matrix A ~ U diag(S) Vh, or of each of a batch.

    U: left singular vectors, (..., m, rank), in an array of the library that A came in, as are all
    S: singular values, (..., rank), descending
    Vh: right singular vectors, (..., rank, n)
    error: (..., rank), an estimate of |sigma_i - S_i|, in the units of A; not a certain bound
    iterations: block products with A or its transpose; 0 where A was factored whole

    >>> import numpy as np, spectral_engine as se
    >>> A = np.diag([3.0, 2.0, 1.0])
    >>> found = se.spectrum(A)
    >>> bool(np.allclose(found.U * found.S @ found.Vh, A))
    True
    """

    U: Any
    S: Any
    Vh: Any
    error: Any
    iterations: int

    def __repr__(self) -> str:
        """The shapes and the ends of the spectrum; the arrays are attributes."""
        *batch, rank = self.S.shape
        m, n = self.U.shape[-2], self.Vh.shape[-1]
        size = "x".join(map(str, (*batch, m, n)))
        values = self.S.reshape(-1)
        ends = f", S {float(values.max()):.4g} to {float(values.min()):.4g}" if len(values) else ""
        return f"Spectrum({size}, rank {rank}{ends})"


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

    Returns:
        The triplets, with an estimate of the error of each value.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came; NaN or infinity
            in one matrix of a batch is named by its index.

    Source: Musco and Musco, NeurIPS 2015, algorithm 2; see `spectral_kernels.spectra`.

    >>> import numpy as np, spectral_engine as se
    >>> found = se.spectrum(np.diag([3.0, 2.0, 1.0]), rank=2)
    >>> found.U.shape, found.S.round(6).tolist()
    ((3, 2), [3.0, 2.0])
    """
    rank = integer("rank", rank, least=1)
    seed = integer("seed", seed, least=0, most=2**64 - 1)
    stream = integer("stream", stream, least=0, most=2**32 - 1)
    A = as_tensor(weight) if isinstance(weight, np.ndarray | torch.Tensor) else weight
    if getattr(A, "ndim", 0) >= 2:
        rank = min(rank, *(max(size, 1) for size in A.shape[-2:]))
    try:
        found = randomized_svd(A, rank, tolerance=tolerance, depth=depth, seed=seed, stream=stream)
    except (TypeError, ValueError) as error:
        if not str(error).startswith("A: "):
            raise
        raise type(error)(f"weight{str(error)[1:]}") from error
    U, S, Vh, estimate, iterations = found
    if isinstance(weight, np.ndarray):
        U, S, Vh, estimate = (np.asarray(x) for x in (U, S, Vh, estimate))
    return Spectrum(U, S, Vh, estimate, iterations)


def spectra(
    model: nn.Module | str | os.PathLike[str],
    rank: int = 64,
    *,
    tolerance: float = 1e-3,
    max_bytes: int = MAX_BYTES,
    progress: Progress[LayerSpectrum] = True,
    full: Full = "auto",
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    split: Any = None,
    seed: int = 0,
) -> Spectra:
    """The spectrum of every weight of a model or of a checkpoint, as a table.

    A model has the rows of a report of `prune`: one for each gate of a recurrent weight, for each
    of q, k and v, and for each view of `register_layer`. A grouped or depthwise convolution, or a
    mixture's experts, is one row. It is the matrix with its groups as diagonal blocks: its singular
    values are those of all groups together, and the Marchenko-Pastur edge is that of one group.
    Embeddings, and plain parameters of two or more dimensions, which `prune` leaves alone by
    default, have rows too. Plain parameters, and all tensors of a file, are seen as matrices of
    shape (shape[0], -1). A shared weight has one row. What has no spectrum is in `.skipped`, with
    the reason.

    The model stays as it is: no parameter, buffer, training flag or random state changes, also
    where weights are parametrized.

    Args:
        model: a module, or the path of a weight file or a Hugging Face style folder, of which one
            tensor at a time is read, or as many as `max_bytes` allows.
        rank: how many leading singular values are wanted, at most min(m, n) of each.
        tolerance: their relative accuracy.
        max_bytes: working memory, beside the model; one matrix is worked on whatever it takes.
        progress: True, a bar on stderr where that is a terminal; False, none; or a function that is
            called with each `LayerSpectrum` as it is done, in no order.
        full: "auto", the whole spectrum where min(m, n) <= 2048, with the larger half and the
            leading values good to `tolerance`; True, every whole spectrum, to rounding; False, the
            leading values of each, and estimates of the rest.
        targets, ignore, split: which weights of a model, and which of them are several matrices,
            as in `prune`; of a file, globs over names or "re:...".
        seed: of test matrices and start vectors.

    Returns:
        A row for each weight, in the order of the model; of a file in natural order of the names.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came; a weight that
            holds NaN or infinity is named.
        OSError: the file cannot be read.

    >>> import torch, spectral_engine as se
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LSTM(5, 4))
    >>> found = se.spectra(model, rank=2)
    >>> [row.name for row in found][:2], len(found["0.weight"].singular_values)
    (['0.weight', '1.weight_ih_l0[input]'], 2)
    """
    start = time.perf_counter()
    options = SpectraOptions(rank, tolerance, full, seed, max_bytes=max_bytes)
    check_progress(progress)
    selector = Selector.of(targets, ignore)
    rows: dict[str, LayerSpectrum] = {}
    with weights_of(model, selector, split) as (weights, skipped):
        require_found(weights, selector)
        with reporting(progress, "spectra", len(weights)) as report:

            def take(weight: Weight, row: LayerSpectrum) -> None:
                rows[weight.name] = row
                report(row)

            for_each_batch(partial(measure, options=options), take, weights, options)
    names = [weight.name for weight in weights]
    if not isinstance(model, nn.Module):
        names.sort(key=natural)  # a file has 10 before 2
    layers = [rows[name] for name in names]
    seconds = time.perf_counter() - start
    return Spectra(options.rank, options.tolerance, layers, skipped, seconds)
