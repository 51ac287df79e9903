"""A batch of matrices as one layer: the groups of a convolution, the experts of a mixture.

Where the scores are magnitudes the batch has one budget: stacked, it is one tall matrix (b m, n).
Spectral scores, and refits, are of each matrix by itself, and then each has an equal share of the
budget; but for those of one row or column, which the low rank says nothing about.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from spectral_kernels import entries_to_keep, stream_id

from spectral_engine.matrix.moments import Moments
from spectral_engine.matrix.sparsify import Sparsified

#: `sparsify` with all but the matrix, its sparsity, its stream and the moments of its inputs.
Sparsify = Callable[[torch.Tensor, float, int, Moments | None], Sparsified]


def sparsify_stacked(
    weight: torch.Tensor, sparsity: float, sparsify: Sparsify, name: str
) -> Sparsified:
    """A batch (b, m, n) as one matrix (b m, n), under the stream of `name`."""
    out = sparsify(weight.flatten(0, 1), sparsity, stream_id(name), None)
    return Sparsified(out.weight.reshape(weight.shape), out.report)


def sparsify_each(
    weight: torch.Tensor,
    sparsities: Sequence[float],
    sparsify: Sparsify,
    name: str,
    moments: Moments | None = None,
) -> Sparsified:
    """Each of a batch (b, m, n) by itself, under the streams of "name[0]", "name[1]" and so on."""
    found = [
        sparsify(matrix, share, stream_id(f"{name}[{i}]"), None if moments is None else moments[i])
        for i, (matrix, share) in enumerate(zip(weight, sparsities, strict=True))
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


def equal_shares(weight: torch.Tensor, sparsity: float) -> list[float]:
    """The sparsity of each of a batch (b, m, n), of which all together keep what one matrix would.

    What cannot be shared out equally goes to the matrices with the largest entries, one each.
    """
    size = weight[0].numel()
    kept, more = divmod(entries_to_keep(weight.numel(), sparsity), len(weight))
    largest = torch.linalg.vector_norm(weight, math.inf, dim=(1, 2))
    first = set(largest.topk(more).indices.tolist())
    counts = [kept + (i in first) for i in range(len(weight))]
    # A sparsity is under 1; one of a quarter of an entry less keeps none all the same.
    return [(size - (count or 0.25)) / size for count in counts]
