"""A batch of matrices as one layer: the groups of a convolution, the experts of a mixture.

Where the scores are magnitudes the batch has one budget: stacked, it is one tall matrix (b m, n).
Spectral scores, and refits, are of each matrix by itself, and then so is the budget; but for those
of one row or column, which the low rank says nothing about.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from spectral_kernels import stream_id

from spectral_engine.moments import Moments
from spectral_engine.single import Sparsified

#: `sparsify` with all but the matrix, its stream and the moments of its inputs.
Sparsify = Callable[[torch.Tensor, int, Moments | None], Sparsified]


def sparsify_stacked(weight: torch.Tensor, sparsify: Sparsify, name: str) -> Sparsified:
    """A batch (b, m, n) as one matrix (b m, n), under the stream of `name`."""
    out = sparsify(weight.flatten(0, 1), stream_id(name), None)
    return Sparsified(out.weight.reshape(weight.shape), out.report)


def sparsify_each(
    weight: torch.Tensor, sparsify: Sparsify, name: str, moments: Moments | None = None
) -> Sparsified:
    """Each of a batch (b, m, n) by itself, under the streams of "name[0]", "name[1]" and so on."""
    found = [
        sparsify(matrix, stream_id(f"{name}[{i}]"), None if moments is None else moments[i])
        for i, matrix in enumerate(weight)
    ]
    reports = [one.report for one in found]
    sparse = torch.stack([one.weight for one in found])
    nnz = sum(report.nnz for report in reports)
    report = replace(
        reports[0],
        sparsity=1.0 - nnz / weight.numel(),
        nnz=nnz,
        size=weight.numel(),
        c=float(np.median([report.c for report in reports])),
        seconds=math.fsum(report.seconds for report in reports),
        _pair=(weight.flatten(0, 1), sparse.flatten(0, 1)),
    )
    shifts = [one.bias for one in found if one.bias is not None]
    return Sparsified(sparse, report, torch.stack(shifts) if shifts else None)
