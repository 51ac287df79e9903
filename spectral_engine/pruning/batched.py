"""Layers on a device, sparsified together: a few launches for many of them, bit for bit the same.

A launch costs more than a small layer does. Where nothing but magnitudes and a law is asked for,
runs of layers go to `spectral_kernels.sparsify_many`; on a CPU, where a call costs little, each
layer goes by itself.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence

import spectral_kernels
from spectral_kernels import stream_id

from spectral_engine.layers.find import Layer
from spectral_engine.pruning.plan import Assignment
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.sparsifying.report import Sparsified, report_of

#: Kinds of devices with launches to save.
DEVICES = ("cuda",)
#: Bytes of results that are made at once, beside the model's own.
MOST_BYTES = 1 << 28


def goes_together(layer: Layer, recipe: Recipe) -> bool:
    """Whether a layer is one matrix on a device, and its recipe no more than a law of magnitudes.

    A layer without calibration inputs, that is.
    """
    plain = recipe.budget.pattern is None and recipe.budget.group == "tensor"
    return (
        plain
        and not recipe.method.needs_low_rank
        and recipe.without_inputs().refit is None
        and recipe.without_inputs().low_rank is None
        and not layer.view.batch
        and not layer.sharded
        and layer.parameter.device.type in DEVICES
    )


def sparsified_together(
    layers: Sequence[Layer], assigned: Mapping[str, Assignment], seed: int
) -> Iterator[Sparsified]:
    """What `sparsify_layer` makes of each layer, in order; each `goes_together`.

    At most `MOST_BYTES` of results, or one layer's, are held at a time.

    Raises:
        ValueError: a layer of the run cannot be sparsified; names it where it can be told.
    """
    for run in _runs(layers, assigned):
        start = time.perf_counter()
        recipe = assigned[run[0].name].recipe
        weights = [layer.matrices() for layer in run]
        shares = [assigned[layer.name].sparsity for layer in run]
        try:
            found = spectral_kernels.sparsify_many(
                weights, sparsity=shares, law=recipe.method.law,
                law_parameter=recipe.method.law_parameter, rescale=recipe.method.rescale,
                seed=seed, streams=[stream_id(layer.name) for layer in run],
            )  # fmt: skip
        except ValueError as error:
            names = run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}"
            raise ValueError(f"model: {names}: {error}") from error
        seconds = (time.perf_counter() - start) / len(run)
        for weight, share, sparse in zip(weights, shares, found, strict=True):
            report = report_of(weight, sparse, recipe, share, sparse.nnz, seconds)
            yield Sparsified(sparse.weight, report)


def _runs(layers: Sequence[Layer], assigned: Mapping[str, Assignment]) -> Iterator[list[Layer]]:
    """Layers of one recipe that follow each other and fit together."""
    run: list[Layer] = []
    held = 0
    for layer in layers:
        size = math.prod(layer.shape) * layer.parameter.element_size()
        same = run and assigned[run[0].name].recipe == assigned[layer.name].recipe
        if run and (held + size > MOST_BYTES or not same):
            yield run
            run, held = [], 0
        run.append(layer)
        held += size
    if run:
        yield run
