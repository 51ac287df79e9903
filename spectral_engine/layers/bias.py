"""Where the bias of a layer's output features is kept."""

import torch
from torch import nn

from spectral_engine.distributed.shards import gathered, here, is_sharded, own_part
from spectral_engine.layers.find import Layer

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def add_to_bias(layer: Layer, shift: torch.Tensor) -> None:
    """Add to the biases of a layer's output features, in place.

    Args:
        layer: one whose module has a bias; see `bias_of`.
        shift: (m,) or (b, m), one number for each row of the layer's matrices.

    Raises:
        ValueError: there is no bias.
    """
    bias = bias_of(layer)
    if bias is None:
        raise ValueError(f"bias_correction: expected a bias at {layer.name}; there is none")
    found = gathered(bias)
    places = _places(layer).to(found.device)
    found[places] = (found[places].double() + shift.reshape(-1).to(found.device)).to(found.dtype)
    if is_sharded(bias):
        here(bias).copy_(own_part(found, bias))


def bias_of(layer: Layer) -> nn.Parameter | None:
    """The parameter that holds the layer's bias, with those of other parts; None if it has none."""
    name = layer.local_name.replace("weight", "bias")
    if isinstance(layer.module, nn.MultiheadAttention):
        name = "in_proj_bias"
    return layer.module._parameters.get(name) if "weight" in layer.local_name else None


def _places(layer: Layer) -> torch.Tensor:
    """The entry of the bias of each row of the layer's matrices, in order.

    A tensor shaped as the parameter, of the numbers of its output features, is seen as the layer
    sees the parameter.
    """
    shape, module = layer.parameter.shape, layer.module
    first = torch.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    second = torch.arange(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2))
    if isinstance(module, _TRANSPOSED):
        features = first // (shape[0] // module.groups) * shape[1] + second
    elif len(shape) == 2 and isinstance(getattr(module, "nf", None), int):  # Conv1D: (in, out)
        features = second
    else:
        features = first
    if isinstance(module, nn.MultiheadAttention) and not layer.view.part:
        features = features + "qkv".index(layer.local_name[0]) * module.embed_dim
    return layer.as_matrices(features.expand(shape))[..., 0].reshape(-1)
