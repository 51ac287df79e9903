"""Why a parameter is not seen as a matrix, and what makes it one that is."""

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from spectral_engine.layers.names import named_modules, parameter_name
from spectral_engine.layers.views import views_of

#: What FullyShardedDataParallel makes of the weights that it holds.
FLAT = (
    "is held flat and in pieces by FullyShardedDataParallel, which is not supported; shard the "
    "model by fully_shard instead, prune it with its full weights, or name it in ignore"
)
#: Parameters that torch's older hooks make a weight of, and the function that takes the hook away.
_MADE_OF = {
    "weight_g": "torch.nn.utils.remove_weight_norm",
    "weight_v": "torch.nn.utils.remove_weight_norm",
    "weight_orig": "torch.nn.utils.remove_spectral_norm",
}
#: What a layer with factors has beside its weight.
_FACTORS = {"left", "right"}


def reason_not_seen(module: nn.Module, local: str) -> str:
    """Why no view is of this parameter.

    Args:
        module: that holds it itself.
        local: its name there.

    Returns:
        What it is, and what makes it a plain weight, where something does.
    """
    if isinstance(module, ParametrizationList):
        return (
            "a parametrization makes the weight of it; "
            "torch.nn.utils.parametrize.remove_parametrizations makes the weight plain"
        )
    base = local.removesuffix("_orig")
    if base != local and f"{base}_mask" in module._buffers:
        return (
            "torch.nn.utils.prune makes the weight of it; torch.nn.utils.prune.remove makes the "
            "weight plain"
        )
    if local in _MADE_OF and module._forward_pre_hooks and "weight" not in module._parameters:
        return f"a hook makes the weight of it; {_MADE_OF[local]} makes the weight plain"
    if local in _FACTORS and module._parameters.keys() >= _FACTORS:
        return "a factor beside a sparse weight"
    return f"{type(module).__name__}.{local} is not seen as a matrix"


def is_sharded_flat(model: nn.Module) -> bool:
    """Whether some part of a model is in torch's FullyShardedDataParallel."""
    return any(
        cls.__name__ == "FullyShardedDataParallel" and cls.__module__.startswith("torch.")
        for module in model.modules()
        for cls in type(module).__mro__
    )


def weights_held_flat(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """The weights of a flat sharded model that are no parameters of their modules any more.

    Returns:
        The weight's name, its module's, and the module.
    """
    for prefix, module in named_modules(model):
        for local in dict.fromkeys(view.parameter for view in views_of(module)):
            if local not in module._parameters and local in module.__dict__:
                yield parameter_name(prefix, local), prefix, module
