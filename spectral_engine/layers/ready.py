"""Whether weights can be pruned, checked before the first one is changed."""

from collections.abc import Container, Sequence

import torch
from spectral_kernels import check_weight
from torch.nn.parameter import is_lazy

from spectral_engine.distributed.shards import gathered
from spectral_engine.layers.find import Layer
from spectral_engine.layers.storage import require_writable, without_values

#: The kernels score in float32.
LARGEST = torch.finfo(torch.float32).max


def require_ready(layers: Sequence[Layer], masked: Container[int] = ()) -> None:
    """Refuse what cannot be pruned, before anything is changed.

    Args:
        masked: ids of parameters whose zeros are known to be of an earlier pruning.

    Raises:
        TypeError: a dtype or a device that has no kernels.
        ValueError: a weight not initialised, on the meta device, empty, all zeros, with entries
            that are not finite in float32, in which they are scored, or one that cannot be changed
            in place, entry by entry (see `require_writable`).
    """
    for layer in layers:
        weight = layer.parameter
        if is_lazy(weight):
            raise ValueError(
                f"model: {layer.name} has no shape yet; run the model once, so that lazy layers "
                "are initialised"
            )
        if weight.is_meta:
            raise ValueError(f"model: {layer.name} {without_values(layer.module)}")
        entries = layer.entries(gathered(weight))
        check_weight(entries, f"model: {layer.name}")
        low, high = torch.aminmax(entries)
        if not (bool(low >= -LARGEST) and bool(high <= LARGEST)):
            raise ValueError(
                f"model: {layer.name} holds NaN, infinity or entries too large for float32"
            )
        if bool(low == high) and bool(low == 0) and id(weight) not in masked:
            raise ValueError(
                f"model: {layer.name} is all zeros, so that no entry ranks above another; "
                "train it first or name it in ignore"
            )
    require_writable((layer.name, layer.parameter) for layer in layers)
