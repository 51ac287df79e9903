"""Layers on a device, sparsified together: a few launches for many of them, bit for bit the same.

A launch costs more than a small layer does. Where nothing but magnitudes and a law is asked for,
runs of layers go to `spectral_kernels.sparsify_many`; on a CPU, where a call costs little, each
layer goes by itself.
"""

import time
from collections.abc import Iterator, Mapping, Sequence

import spectral_kernels
from spectral_kernels import stream_id

from spectral_engine.layers.find import Layer
from spectral_engine.matrix.sparsify import Sparsified, made_report
from spectral_engine.recipe.legacy import Method

#: Kinds of devices with launches to save.
DEVICES = ("cuda",)
#: Bytes of weights that are made at once, beside the model's own.
MOST_BYTES = 1 << 28


def goes_together(layer: Layer) -> bool:
    """Whether a layer is one matrix on a device."""
    return not layer.view.batch and layer.parameter.device.type in DEVICES


def sparsified_together(
    layers: Sequence[Layer], method: Method, sparsities: Mapping[str, float], seed: int
) -> Iterator[Sparsified]:
    """What `sparsify` makes of each layer, in order; the method needs no SVD and no refit.

    At most `MOST_BYTES` of results, or one layer's, are held at a time.

    Raises:
        ValueError: a layer of the run cannot be sparsified; names it where it can be told.
    """
    for run in _runs(layers):
        start = time.perf_counter()
        weights = [layer.matrices() for layer in run]
        shares = [sparsities[layer.name] for layer in run]
        try:
            found = spectral_kernels.sparsify_many(
                weights, sparsity=shares, law=method.law, law_parameter=method.law_parameter,
                rescale=method.rescale, seed=seed,
                streams=[stream_id(layer.name) for layer in run],
            )  # fmt: skip
        except ValueError as error:
            names = run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}"
            raise ValueError(f"model: {names}: {error}") from error
        seconds = (time.perf_counter() - start) / len(run)
        for weight, share, sparse in zip(weights, shares, found, strict=True):
            report = made_report(weight, sparse, method, share, sparse.nnz, seconds)
            yield Sparsified(sparse.weight, report)


def _runs(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    run: list[Layer] = []
    held = 0
    for layer in layers:
        size = layer.weight.numel() * layer.weight.element_size()
        if run and held + size > MOST_BYTES:
            yield run
            run, held = [], 0
        run.append(layer)
        held += size
    if run:
        yield run
