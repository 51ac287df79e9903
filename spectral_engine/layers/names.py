"""The names of a model's modules, whatever it is wrapped in.

torch.compile, DistributedDataParallel and the like hold the model as a child of their own, so that
every name gets a prefix: "_orig_mod.", "module.". A layer's draws hang on its name, reports and
masks are looked up by it, and a model must not be another one for being wrapped. Names are those of
the model inside.
"""

from collections.abc import Iterator

import torch
from torch import nn

from spectral_engine.distributed.shards import settle

#: Children that only a wrapper has, under names that nothing else uses.
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: torch's wrappers that call the model inside plainly "module".
_WRAPPERS = (
    "AveragedModel",
    "DataParallel",
    "DistributedDataParallel",
)


def named_modules(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module of a model under each of its names, wrappers left out of the names.

    Args:
        model: a module, itself the first to come.
        name: what it is called; "" for a whole model.

    Returns:
        Name and module, in the order of `model.named_modules(remove_duplicate=False)`; a wrapper
        comes under the name of what it holds.
    """
    yield name, model
    for child_name, child in model._modules.items():
        if child is None:
            continue
        if _wraps(model, child_name):
            yield from named_modules(child, name)
        else:
            yield from named_modules(child, f"{name}.{child_name}" if name else child_name)


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter of a model under each of its names, wrappers left out of the names."""
    settle(model)
    return {
        parameter_name(name, local): parameter
        for name, module in named_modules(model)
        for local, parameter in module._parameters.items()
        if parameter is not None
    }


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer that a model saves, as `named_parameters` names them."""
    settle(model)
    return {
        parameter_name(name, local): tensor
        for name, module in named_modules(model)
        for local, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and local not in module._non_persistent_buffers_set
    }


def parameter_name(module_name: str, local: str) -> str:
    """The full name of a parameter that its module calls `local`."""
    return f"{module_name}.{local}" if module_name else local


def _wraps(module: nn.Module, child: str) -> bool:
    """Whether a module is a wrapper, and this child of it what it wraps."""
    if child in _WRAPPED:
        return True
    return child == "module" and any(
        cls.__name__ in _WRAPPERS and cls.__module__.startswith("torch.")
        for cls in type(module).__mro__
    )
