"""Sparsify one matrix: the engine's front door to the kernels."""

import math
import time
from functools import partial
from typing import Any

import spectral_kernels
import torch

from spectral_engine._util.checks import integer
from spectral_engine.matrix.arrays import as_matrix, as_tensor, check_rank
from spectral_engine.matrix.moments import Moments
from spectral_engine.recipe.allocation import Weight, shares_of
from spectral_engine.recipe.methods import Method
from spectral_engine.recipe.presets import as_recipe
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.refitting.apply import MaskBudget, bias_shift, refitted
from spectral_engine.sparsifying.low_rank import with_factors
from spectral_engine.sparsifying.report import Sparsified, report_of
from spectral_engine.sparsifying.score import SpectralScore, spectral_score


def sparsify(
    weight: Any,
    recipe: Recipe | Method | str = "magnitude",
    sparsity: float | None = None,
    *,
    inputs: Any = None,
    seed: int = 0,
    stream: int = 0,
) -> Sparsified:
    """A sparse copy of `weight` with nearly its spectrum.

    Args:
        weight: NumPy array, torch tensor (CPU or CUDA) or CuPy array of two or more dimensions,
            float16, bfloat16, float32 or float64; seen as the matrix (shape[0], -1).
        recipe: a `Recipe`, a method such as `se.Principal(rank=64)`, or a preset's name such as
            "magnitude" or "wanda". Its `select` is not used here.
        sparsity: fraction of zeros, in [0, 1); None leaves it to the recipe, whose default is 0.9.
            Exact where the largest are kept; where entries are drawn, the expected count is within
            1e-3 of it and the count itself within sampling noise.
        inputs: calibration inputs (..., n) of the layer, or their `Moments`. Each score is
            multiplied by the root mean square of its input feature, and refits can fit the outputs.
        seed, stream: the draws of tensor `stream` under `seed`; the same bits on every backend.

    Returns:
        The sparse array and a report of it; with a refit's `bias_correction` also what keeps the
        mean output when added to the bias, with `LowRank` the two factors to add to it.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Example:
        >>> import numpy as np
        >>> weight = np.arange(1.0, 13.0, dtype=np.float32).reshape(3, 4)
        >>> out = sparsify(weight, "magnitude", 0.75)
        >>> out.weight
        array([[ 0.,  0.,  0.,  0.],
               [ 0.,  0.,  0.,  0.],
               [ 0., 10., 11., 12.]], dtype=float32)
    """
    seed = integer("seed", seed, least=0, most=2**64 - 1)
    stream = integer("stream", stream, least=0, most=2**32 - 1)
    chosen = as_recipe(recipe, sparsity, calibrated=inputs is not None)
    spectral_kernels.check_weight(weight)
    if isinstance(weight, torch.Tensor):
        as_tensor(weight)  # refuses a sparse layout
    if chosen.method.rank is not None:
        check_rank(chosen.method.rank, min(weight.shape[0], math.prod(weight.shape[1:])))
    moments = None if inputs is None else moments_of(weight, inputs)
    share = chosen.budget.share
    if share is None:
        share = shares_of(chosen.budget, [Weight("weight", lambda: weight, weight.shape)])["weight"]
    return sparsify_matrix(weight, chosen, share, moments, seed=seed, stream=stream)


def sparsify_matrix(
    weight: Any,
    recipe: Recipe,
    sparsity: float,
    moments: Moments | None = None,
    *,
    seed: int,
    stream: int,
) -> Sparsified:
    """`sparsify`, with everything decided: what `prune` does to each layer.

    Args:
        weight: as for `sparsify`. recipe: its method, group, pattern and refit are carried out.
        sparsity: that of this matrix, its share of the budget.
        moments: of its inputs; given where the recipe needs them.
        seed, stream: as for `sparsify`.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    if recipe.low_rank is not None:
        return with_factors(
            weight, recipe, sparsity, moments, partial(sparsify_matrix, seed=seed, stream=stream)
        )
    start = time.perf_counter()
    method, budget, refit = recipe.method, recipe.budget, recipe.refit
    if moments is not None and recipe.bias_correction:
        moments = moments.deviations()
    score = spectral_score(weight, method, moments) if method.needs_low_rank else SpectralScore()
    pattern = None if budget.pattern is None else str(budget.pattern)
    sparse = spectral_kernels.sparsify(
        weight,
        sparsity=sparsity,
        law=method.law,
        law_parameter=method.law_parameter,
        rescale=method.rescale,
        score=method.score,
        factors=score.factors,
        mixture=score.mixture,
        column=None if moments is None else moments.host_scale(),
        group=budget.group,
        pattern=pattern,
        seed=seed,
        stream=stream,
    )
    nnz, shift = sparse.nnz, None
    if refit is not None:
        mask_budget = MaskBudget(sparsity, budget.group, budget.pattern)
        values = as_tensor(sparse.weight)
        found = refitted(
            refit, as_matrix(weight), values.reshape(len(values), -1), moments,
            mask_budget if recipe.refit_chooses else None,
        )  # fmt: skip
        values.copy_(found.reshape(values.shape))
        nnz = int(torch.count_nonzero(values))
    if moments is not None and recipe.bias_correction:
        shift = bias_shift(as_matrix(weight), as_matrix(sparse.weight), moments)
    seconds = time.perf_counter() - start
    report = report_of(weight, sparse, recipe, sparsity, nnz, seconds, score.rank)
    return Sparsified(sparse.weight, report, shift)


def moments_of(weight: Any, inputs: Any) -> Moments:
    """The moments of calibration inputs for a weight; those that come as moments are checked."""
    n = math.prod(weight.shape[1:])
    if not isinstance(inputs, Moments):
        return Moments.of(inputs, n).to(as_tensor(weight).device)
    if tuple(inputs.second.shape) != (n, n):
        raise ValueError(f"inputs: expected moments ({n}, {n}); got {tuple(inputs.second.shape)}")
    return inputs
