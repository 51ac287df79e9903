"""The masks of a model: what pruning made zero stays zero, and the model stays the model it was.

Weights remain plain parameters and `forward` and `state_dict` are untouched, so that compiling,
exporting, copying and saving a masked model is what it is for a dense one; `mask` says how its
zeros are kept. A checkpoint holds no mask, which the zeros imply: `mask_zeros` makes it from them.
`finalize` leaves plain parameters.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spectral_engine.layers.find import Layer, layers_to_prune, require_ready
from spectral_engine.layers.selector import Selector
from spectral_engine.masking.mask import Mask, Owners, drop_mask, mask_of, masks_in, put_masks


def masks(model: nn.Module) -> dict[str, Mask]:
    """The masks of a model, by parameter name as in `named_parameters()`.

    Raises:
        ValueError: a masked parameter is no longer the module's, so that its zeros would be lost.
    """
    _require_module(model)
    found: dict[str, Mask] = {}
    seen = set()
    for prefix, module in model.named_modules():
        for local in masks_in(module):
            name = f"{prefix}.{local}" if prefix else local
            parameter = module._parameters.get(local)
            mask = None if parameter is None else mask_of(parameter)
            if mask is None:
                raise ValueError(
                    f"model: {name} was replaced after it was masked, and its zeros are not kept; "
                    "call mask_zeros(model) to keep those that it has now, or finalize(model)"
                )
            if id(mask) not in seen:
                found[name] = mask
            seen.add(id(mask))
    return found


def mask_zeros(
    model: nn.Module,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    split: Mapping[str, Sequence[str] | Mapping[str, int]] | None = None,
) -> dict[str, Mask]:
    """Keep the zeros that a model has, as after a pruned checkpoint was loaded; `masks(model)`.

    Args:
        model: its weights are those that `prune` sees; one without zeros gets no mask, and a mask
            that is there already gives way.
        targets, ignore, split: see `prune`.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came; a weight that is
            all zeros is refused, since it would never be trained. No mask is made then.
    """
    layers, _ = layers_to_prune(model, Selector.of(targets, ignore), split)
    require_ready(layers)
    mask_layers(layers)
    return masks(model)


def apply_masks(model: nn.Module, kept: Mapping[str, Any]) -> dict[str, Mask]:
    """Zero entries of a model and keep them zero, as those of a mask of another model.

    Args:
        model: a weight that has a mask already keeps the zeros of both.
        kept: parameter names to masks: a `Mask`, or a boolean tensor of the parameter's shape,
            True where an entry is kept.

    Returns:
        `masks(model)`.

    Raises:
        TypeError, ValueError: a mask that does not fit; nothing is changed then.
    """
    _require_module(model)
    masks(model)
    owners = _owners(model)
    if not isinstance(kept, Mapping):
        raise TypeError(f"kept: expected names to masks; got {type(kept).__name__}")
    ready = []
    for name, mask in kept.items():
        if name not in owners:
            raise ValueError(f"kept: expected the name of a parameter; got {name!r}")
        parameter = owners[name][0][0]._parameters[owners[name][0][1]]
        ready.append((owners[name], _fitting(name, parameter, mask)))
    for holders, entries in ready:
        narrow(holders, entries)
    found = masks(model)
    for mask in found.values():
        mask.apply()
    return found


def finalize(model: nn.Module) -> None:
    """Remove all masks of a model: plain parameters, zeros and all, and no hooks are left."""
    _require_module(model)
    for module in model.modules():
        for local in list(masks_in(module)):
            drop_mask(module, local)


# What pruning uses


def kept_entries(layers: Iterable[Layer]) -> dict[nn.Parameter, torch.Tensor]:
    """For each parameter, True where it is not zero; outside of the layers, what its mask says."""
    kept: dict[nn.Parameter, torch.Tensor] = {}
    for layer in layers:
        weight = layer.parameter.detach()
        entries = layer.entries(weight)
        if entries.numel() == weight.numel():
            kept[layer.parameter] = weight.bool()  # four times faster than weight != 0
            continue
        if layer.parameter not in kept:
            mask = mask_of(layer.parameter)
            everything = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
            kept[layer.parameter] = everything if mask is None else mask.unpack()
        layer.entries(kept[layer.parameter]).copy_(entries)
    return kept


def mask_layers(layers: Sequence[Layer]) -> None:
    """Mask what is zero in these layers now, and nothing else of them; no zeros, no mask."""
    kept = kept_entries(layers)
    for layer in layers:
        entries = kept.pop(layer.parameter, None)
        if entries is not None and entries.all():
            for module, local in layer.owners:
                drop_mask(module, local)
        elif entries is not None:
            put_masks(layer.owners, entries)


def keep_zeros(layers: Iterable[Layer]) -> None:
    """Mask what is zero in these layers now, besides what masks of theirs keep zero already."""
    layers = list(layers)
    kept = kept_entries(layers)
    for layer in layers:
        if layer.parameter in kept:
            narrow(layer.owners, kept.pop(layer.parameter))


def narrow(owners: Owners, kept: torch.Tensor) -> None:
    """Keep these entries only, and of those no other than the masks there keep already."""
    for module, local in owners:
        mask = masks_in(module).get(local)
        if mask is not None:
            kept = kept & mask.unpack()
    put_masks(owners, kept)


def _owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every name of every parameter, with all modules that hold it."""
    by_parameter: dict[int, list[tuple[nn.Module, str]]] = {}
    named: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, parameter in module._parameters.items():
            if parameter is not None:
                holders = by_parameter.setdefault(id(parameter), [])
                holders.append((module, local))
                named[f"{prefix}.{local}" if prefix else local] = holders
    return named


def _fitting(name: str, parameter: nn.Parameter | None, mask: Any) -> torch.Tensor:
    entries = mask.unpack() if isinstance(mask, Mask) else mask
    if not isinstance(entries, torch.Tensor) or entries.dtype != torch.bool:
        got = entries.dtype if isinstance(entries, torch.Tensor) else type(entries).__name__
        raise TypeError(f"kept: expected a Mask or a boolean tensor for {name}; got {got}")
    if parameter is None or is_lazy(parameter) or parameter.is_meta:
        raise ValueError(f"model: {name} has no values yet: run the model once or load its weights")
    if not parameter.is_floating_point():
        raise TypeError(
            f"model: expected a floating-point weight to mask; {name} is {parameter.dtype}"
        )
    if entries.shape != parameter.shape:
        raise ValueError(
            f"kept: expected a mask of shape {tuple(parameter.shape)} for {name}; "
            f"got {tuple(entries.shape)}"
        )
    return entries.detach().to(parameter.device)


def _require_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
