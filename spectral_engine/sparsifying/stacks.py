"""A layer of one matrix, or of a stack of them: groups of a convolution, experts of a mixture.

Where the scores are magnitudes, a stack (b, m, n) has one budget: it is one tall matrix (b m, n).
Spectral scores, and refits, are of each matrix by itself, and then each has an equal share of the
budget. Matrices of one row or column have no low rank; they are scored by magnitude. A stack is
held by no module that could hold factors beside it, and gets none.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from spectral_kernels import entries_to_keep, stream_id

from spectral_engine.matrix.moments import Moments
from spectral_engine.recipe.methods import Magnitude, Method, Randomized
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.sparsifying.report import Sparsified
from spectral_engine.sparsifying.sparsify import sparsify_matrix


def sparsify_layer(
    matrices: torch.Tensor,
    name: str,
    recipe: Recipe,
    sparsity: float,
    moments: Moments | None = None,
    *,
    seed: int,
) -> Sparsified:
    """A layer made sparse, under the stream of its name.

    Args:
        matrices: (m, n), or a stack (b, m, n).
        name: of the layer; each matrix of a stack that goes by itself is called "name[i]".
        recipe, sparsity, seed: see `sparsify_matrix`.
        moments: of the layer's inputs. Without, a refit that needs them is left out.

    Raises:
        ValueError: what `sparsify_matrix` refuses.
    """
    if moments is None:
        recipe = recipe.without_inputs()
    if matrices.ndim == 2:
        stream = stream_id(name)
        return sparsify_matrix(matrices, recipe, sparsity, moments, seed=seed, stream=stream)
    recipe = recipe.without_low_rank()
    alone = moments is None and recipe.refit is None
    if alone and not recipe.method.needs_low_rank:
        return _as_one(matrices, name, recipe, sparsity, seed)
    if alone and min(matrices.shape[1:]) == 1:
        by_magnitude = replace(recipe, method=_by_magnitude(recipe.method))
        return _as_one(matrices, name, by_magnitude, sparsity, seed)
    whole = recipe.budget.group == "tensor" and recipe.budget.pattern is None
    shares = equal_shares(matrices, sparsity) if whole else [sparsity] * len(matrices)
    return _each(matrices, name, recipe, shares, moments, seed)


def _by_magnitude(method: Method) -> Method:
    """The same law with the magnitude as the score."""
    if not method.draws:
        return Magnitude()
    return Randomized(law=method.law, law_parameter=method.law_parameter, rescale=method.rescale)


def _as_one(
    stack: torch.Tensor, name: str, recipe: Recipe, sparsity: float, seed: int
) -> Sparsified:
    """A stack (b, m, n) as one matrix (b m, n)."""
    tall, stream = stack.flatten(0, 1), stream_id(name)
    out = sparsify_matrix(tall, recipe, sparsity, seed=seed, stream=stream)
    return Sparsified(out.weight.reshape(stack.shape), out.report)


def _each(
    stack: torch.Tensor,
    name: str,
    recipe: Recipe,
    sparsities: Sequence[float],
    moments: Moments | None,
    seed: int,
) -> Sparsified:
    """Each of a stack (b, m, n) by itself; one that no input reached, as if there were none."""
    found = []
    for i, (matrix, share) in enumerate(zip(stack, sparsities, strict=True)):
        own, chosen = None if moments is None else moments[i], recipe
        if own is not None and not bool(own.second.diagonal().any()):
            own, chosen = None, recipe.without_inputs()
        stream = stream_id(f"{name}[{i}]")
        found.append(sparsify_matrix(matrix, chosen, share, own, seed=seed, stream=stream))
    reports = [one.report for one in found]
    sparse = torch.stack([one.weight for one in found])
    nnz = sum(report.nnz for report in reports)
    report = replace(
        reports[0],
        sparsity=1.0 - nnz / stack.numel(),
        nnz=nnz,
        size=stack.numel(),
        c=float(np.median([report.c for report in reports])),
        seconds=math.fsum(report.seconds for report in reports),
        _pair=(stack.flatten(0, 1), sparse.flatten(0, 1)),
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
