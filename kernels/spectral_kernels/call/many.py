"""Many matrices in one call: on a device a few launches for all of them, elsewhere one by one."""

from collections.abc import Sequence
from typing import Any

from spectral_kernels._validation import word
from spectral_kernels.backends.deferred import Flaws
from spectral_kernels.backends.protocol import Draw
from spectral_kernels.call.arguments import check_weight, entries_to_keep
from spectral_kernels.call.result import Sparse
from spectral_kernels.call.sparsify import sparsify
from spectral_kernels.reference.laws import Law, named_law


def sparsify_many(
    weights: Sequence[Any],
    *,
    sparsity: float | Sequence[float],
    law: str = "threshold",
    law_parameter: float | None = None,
    rescale: bool = False,
    group: str = "tensor",
    seed: int = 0,
    streams: Sequence[int] | None = None,
    check: bool = True,
) -> list[Sparse]:
    """`sparsify` of each weight by magnitude, bit for bit, as many small layers as there are.

    On a device a stage is one launch for all weights that are tiled alike, so that a network's
    layers cost a few launches, whatever their number. One by one go weights on the CPU, groups of
    rows, laws with row weights, and calls that are captured in a CUDA graph.

    Args:
        weights: as `sparsify` takes them; devices and dtypes may be mixed.
        sparsity: of all, or of each.
        streams: the stream of each weight, 32 bits; the index in the list if left out.
        check: whether to wait once, at the end. Other arguments are those of `sparsify`.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """
    shares = _of_each(weights, sparsity, "sparsity")
    chosen = _of_each(weights, list(range(len(weights))) if streams is None else streams, "streams")
    solved_law = named_law(law, law_parameter)
    together = [
        index
        for index, weight in enumerate(weights)
        if _goes_together(weight, solved_law, group, shares[index])
    ]
    results: dict[int, Sparse] = {}
    if together:
        some = [(weights[at], shares[at], chosen[at]) for at in together]
        found = _together(some, solved_law, rescale, word(seed, "seed", 64))
        results = dict(zip(together, found, strict=True))
    for index, weight in enumerate(weights):
        if index not in results:
            results[index] = sparsify(
                weight, sparsity=shares[index], law=law, law_parameter=law_parameter,
                rescale=rescale, group=group, seed=seed, stream=chosen[index], check=check,
            )  # fmt: skip
        elif check:
            results[index].check()
    return [results[index] for index in range(len(weights))]


def _of_each(weights: Sequence[Any], values: Any, argument: str) -> list[Any]:
    """The values, one for each weight."""
    if not isinstance(weights, list | tuple):
        raise TypeError(f"weights: expected a list or tuple; got {type(weights).__name__}")
    if not isinstance(values, list | tuple):
        return [values] * len(weights)
    if len(values) != len(weights):
        raise ValueError(
            f"{argument}: expected one for each of {len(weights)} weights; got {len(values)}"
        )
    return list(values)


def _goes_together(weight: Any, law: Law, group: str, sparsity: float) -> bool:
    backend = check_weight(weight, "weights")
    if backend.name != "gpu" or group != "tensor" or law.row_weights != "none":
        return False
    size = backend.matrix(weight).size
    # Where all or nothing is kept, a law draws nothing.
    trivial = law.draws and entries_to_keep(size, sparsity) in (0, size)
    return not (trivial or backend.captured())


def _together(
    weights: list[tuple[Any, float, int]], law: Law, rescale: bool, seed: int
) -> list[Sparse]:
    from spectral_kernels.backends.gpu import many  # noqa: PLC0415 (Triton may be missing)

    backend: Any = check_weight(weights[0][0])
    if not isinstance(rescale, bool):
        raise TypeError(f"rescale: expected a bool; got {rescale!r}")
    layers, results = [], []
    for weight, sparsity, stream in weights:
        A, result = backend.matrix(weight), backend.empty_like(weight)
        draw = Draw(seed, word(stream, "streams", 32))
        budget = entries_to_keep(A.size, sparsity)
        layers.append(many.Layer(A, backend.matrix(result), budget, draw, Flaws()))
        results.append(result)
    outcomes = many.run(backend, layers, law, rescale)
    return [
        Sparse(result, outcome.nnz, outcome.c, layer.flaws)
        for result, outcome, layer in zip(results, outcomes, layers, strict=True)
    ]
