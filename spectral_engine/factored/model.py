"""Factors put into the layers of a model, taken out again, and merged into dense weights.

A layer changes its class in place, as `torch.nn.utils.parametrize` does it: it stays the same
object under the same name, with its parameters, hooks and mode.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spectral_engine.factored.modules import DENSE, LOW_RANK, LowRankLayer
from spectral_engine.layers.find import Layer
from spectral_engine.masking.holders import drop_mask

LEFT, RIGHT = "left", "right"


def reason_against_factors(layer: Layer) -> str | None:
    """Why a layer cannot hold factors beside its sparse part, or None."""
    module: Any = layer.module
    if layer.sharded:
        return "its weight is sharded"
    if len(layer.holders) > 1:
        return "several modules share it"
    if type(module) in DENSE:
        return "it has factors already"
    if type(module) not in LOW_RANK or layer.view.part or layer.local_name != "weight":
        return f"no module holds factors beside the weight of a {type(module).__name__}"
    if getattr(module, "groups", 1) != 1:
        return "a convolution of several groups"
    return None


def hold_factors(module: nn.Module, left: torch.Tensor, right: torch.Tensor) -> None:
    """Make a layer, in place, one that holds factors beside its weight.

    Args:
        module: of a class of `LOW_RANK`.
        left, right: (out, rank) and (rank, in); they are trained if the weight is.
    """
    weight: Any = module.weight
    trained = bool(weight.requires_grad)
    module.__class__ = LOW_RANK[type(module)]
    module.register_parameter(LEFT, nn.Parameter(left, requires_grad=trained))
    module.register_parameter(RIGHT, nn.Parameter(right, requires_grad=trained))
    # torch's TransformerEncoderLayer hands the weights of its linear layers to one fused kernel,
    # without calling them, where no module of it has a hook.
    module.register_forward_pre_hook(_called)


def drop_factors(module: nn.Module) -> None:
    """Make a layer, in place, the plain one again that it was, without its factors."""
    module.__class__ = DENSE[type(module)]  # type: ignore[index]
    del module._parameters[LEFT], module._parameters[RIGHT]
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _called:
            del module._forward_pre_hooks[key]


def merge_low_rank(model: nn.Module) -> int:
    """Make layers with factors plain ones again, in place, whose dense weight is S + L R.

    The sum has no zeros as a rule: it takes the memory of the dense weight again, and masks of
    these weights go. It is for tools that know plain layers only; where the bytes count, `compress`
    keeps the sparse part sparse.

    Args:
        model: or one such layer.

    Returns:
        How many layers there were.

    Raises:
        TypeError: no module.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    >>> _ = se.prune(model, se.Recipe(low_rank=se.LowRank(2)), 0.75)
    >>> x = torch.randn(4, 64)
    >>> y = model(x)
    >>> se.merge_low_rank(model), torch.allclose(model(x), y, atol=1e-5)
    (1, True)
    >>> model[0]
    Linear(in_features=64, out_features=32, bias=True)
    """
    found = [module for module in _modules(model) if isinstance(module, LowRankLayer)]
    for module in found:
        merged = module.merged()
        drop_mask(module, "weight")
        module.weight.detach().copy_(merged)
        drop_factors(module)
    return len(found)


def expect_low_rank(model: nn.Module, state: Mapping[str, torch.Tensor]) -> int:
    """Make those layers of a dense model hold factors, in place, of which a state dict has some.

    What `load_state_dict` needs before it takes the state of a model pruned with `LowRank`.

    Args:
        model: the plain network.
        state: what `state_dict()` of the pruned one gave.

    Returns:
        How many layers hold factors now that did not.

    Raises:
        TypeError: no module. ValueError: names the factors that fit no layer.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    >>> _ = se.prune(model, se.Recipe(low_rank=se.LowRank(2)), 0.75)
    >>> again = torch.nn.Sequential(torch.nn.Linear(64, 32))
    >>> se.expect_low_rank(again, model.state_dict())
    1
    >>> again.load_state_dict(model.state_dict())
    <All keys matched successfully>
    """
    modules = dict(_modules(model, named=True))
    count = 0
    for name, left in state.items():
        prefix, _, local = name.rpartition(".")
        right = state.get(f"{prefix}.{RIGHT}" if prefix else RIGHT)
        if local != LEFT or right is None or left.ndim != 2 or right.ndim != 2:
            continue
        module = modules.get(prefix)
        if module is None or isinstance(module, LowRankLayer) or hasattr(module, LEFT):
            continue
        if type(module) not in LOW_RANK:
            raise ValueError(
                f"state: expected {name} to belong to a linear layer or a convolution; the model "
                f"has a {type(module).__name__} there"
            )
        like: Any = module.weight
        m, n = like.flatten(1).shape
        if (left.shape[0], *right.shape) != (m, left.shape[1], n):
            raise ValueError(
                f"state: expected factors ({m}, r) and (r, {n}) for {prefix or 'the layer'}; got "
                f"{tuple(left.shape)} and {tuple(right.shape)}"
            )
        hold_factors(module, like.new_zeros((m, left.shape[1])), like.new_zeros((left.shape[1], n)))
        count += 1
    return count


def _modules(model: Any, *, named: bool = False) -> Any:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
    return list(model.named_modules() if named else model.modules())


def _called(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Changes nothing; see `hold_factors`."""
