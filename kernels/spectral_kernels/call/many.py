"""Many matrices in one call: on a device, a few launches for all of them."""

from collections.abc import Sequence
from typing import Any

from spectral_kernels._validation import word
from spectral_kernels.backends.protocol import Draw
from spectral_kernels.call.arguments import check_weight
from spectral_kernels.call.result import Sparse
from spectral_kernels.call.run import Request, check_shared, run


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
    """`sparsify` of each weight by magnitude, bit for bit, whatever the number of weights.

    On a device a stage is one launch for all weights that are tiled alike, so the layers of a
    network cost a few launches. Weights go one by one on the CPU, where rows are groups, under laws
    with row weights, and while a CUDA graph is captured.

    Args:
        weights: a list or tuple of arrays as `sparsify` takes them; devices and dtypes may differ.
        sparsity: of all, or a list with that of each.
        streams: the stream of each weight, 32 bits; its index in the list if left out.
        check: whether to wait once, at the end; see `sparsify`.
        law, law_parameter, rescale, group, seed: as `sparsify` takes them.

    Returns:
        What `sparsify` returns, of each weight.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    >>> import numpy as np
    >>> from spectral_kernels import sparsify_many
    >>> weights = [np.eye(2, dtype=np.float32), np.arange(4.0).reshape(2, 2)]
    >>> [sparse.nnz for sparse in sparsify_many(weights, sparsity=[0.0, 0.5])]
    [2, 2]
    """
    shares = _of_each(weights, sparsity, "sparsity")
    chosen = _of_each(weights, list(range(len(weights))) if streams is None else streams, "streams")
    shared = check_shared(law, law_parameter, rescale, group, None, check)
    seed = word(seed, "seed", 64)
    requests = [
        Request(
            check_weight(weight, "weights"), weight, share, Draw(seed, word(stream, "streams", 32))
        )
        for weight, share, stream in zip(weights, shares, chosen, strict=True)
    ]
    return run(requests, shared)


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
