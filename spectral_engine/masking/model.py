"""The masks of a model: what pruning made zero stays zero, and the model stays the model it was.

Weights remain plain parameters and `forward` and `state_dict` are untouched, so that compiling,
exporting, copying and saving a masked model is what it is for a dense one; `mask` says how its
zeros are kept. A checkpoint holds no mask, which the zeros imply: `mask_zeros` makes it from them.
`finalize` leaves plain parameters.
"""

import warnings
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spectral_engine.distributed.shards import gathered, settle
from spectral_engine.layers.find import Layer, layers_to_prune
from spectral_engine.layers.names import named_modules, parameter_name
from spectral_engine.layers.ready import require_ready
from spectral_engine.layers.selector import Selector
from spectral_engine.layers.storage import entries_as, memory_of, obstacle, require_writable
from spectral_engine.masking.holders import drop_mask, masks_in, put_masks
from spectral_engine.masking.mask import Mask, Owners, mask_of, replaced


def masks(model: nn.Module) -> dict[str, Mask]:
    """The masks of a model, all in force.

    Args:
        model: one that was pruned, or not.

    Returns:
        Parameter names to masks, in the order of the model's modules. Names are those of the model
        inside torch.compile, DistributedDataParallel and other wrappers. A parameter that several
        modules share comes once.

    Raises:
        TypeError: no model.
        ValueError: a masked parameter was replaced or sharded, so that its zeros are not kept, or
            something has written values where it was pruned, as merging an adapter does. The
            message says what can be done.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
    >>> _ = se.prune(model, sparsity=0.5, ignore="1")
    >>> se.masks(model)
    {'0.weight': Mask(shape=(4, 8), sparsity=0.5000)}
    """
    found = _held(model)
    for name, mask in found.items():
        mask.require_whole(name)
    return found


def mask_zeros(
    model: nn.Module,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    split: Mapping[str, Sequence[str] | Mapping[str, int]] | None = None,
) -> dict[str, Mask]:
    """Keep the zeros that a model has, as after a pruned checkpoint was loaded.

    Args:
        model: its weights are those that `prune` sees; one without zeros gets no mask, and a mask
            that is there already gives way.
        targets, ignore, split: see `prune`.

    Returns:
        `masks(model)`.

    Raises:
        TypeError: no model, or an argument of another type.
        ValueError: no weight is chosen, or one cannot be masked; one that is all zeros would never
            be trained again. Or another weight lost its mask, so that only `finalize` helps.
            No mask is made then.

    >>> import torch
    >>> import spectral_engine as se
    >>> pruned, model = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
    >>> _ = se.prune(pruned, sparsity=0.5)
    >>> _ = model.load_state_dict(pruned.state_dict())
    >>> se.mask_zeros(model)
    {'weight': Mask(shape=(4, 8), sparsity=0.5000)}
    """
    layers, _ = layers_to_prune(model, Selector.of(targets, ignore), split)
    require_ready(layers)
    chosen = {(id(module), local) for layer in layers for module, local in layer.holders}
    for name, mask in _held(model, chosen).items():
        if not any((id(module), local) in chosen for module, local in mask.owners):
            mask.require_whole(name)
    mask_layers(layers)
    return masks(model)


def apply_masks(model: nn.Module, kept: Mapping[str, Any]) -> dict[str, Mask]:
    """Zero entries of a model and keep them zero, as those of a mask of another model.

    Args:
        model: a weight that has a mask already keeps the zeros of both; where something has written
            values over these, they become zero again, also with no masks in `kept`.
        kept: parameter names to masks: a `Mask`, or a boolean tensor of the parameter's shape,
            True where an entry is kept.

    Returns:
        `masks(model)`.

    Raises:
        TypeError: no model, or what is no mask.
        ValueError: a name that no parameter has, or a mask of another shape; a parameter that
            cannot be masked. Nothing is changed then.

    >>> import torch
    >>> import spectral_engine as se
    >>> ticket, fresh = torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)
    >>> _ = se.prune(ticket, sparsity=0.75)
    >>> _ = se.apply_masks(fresh, se.masks(ticket))
    >>> int((fresh.weight != 0).sum())
    8
    """
    _held(model)
    if not isinstance(kept, Mapping):
        raise TypeError(f"kept: expected names to masks; got {type(kept).__name__}")
    owners = _owners(model)
    ready = []
    for name, mask in kept.items():
        if name not in owners:
            raise ValueError(f"kept: expected the name of a parameter; got {name!r}")
        parameter, holders = owners[name]
        ready.append((name, parameter, holders, _fitting(name, parameter, mask)))
    require_writable((name, parameter) for name, parameter, _, _ in ready)
    for name, parameter, holders, entries in ready:
        narrow(name, parameter, holders, entries)
    for mask in _held(model).values():
        mask.apply()
    return masks(model)


def finalize(model: nn.Module) -> None:
    """Remove all masks of a model: plain parameters, and no hooks are left.

    Args:
        model: its values stay as they are, zeros and all. Where something has written values over
            the zeros of a mask, as merging an adapter does, they stay too, with a warning.

    Raises:
        TypeError: no model.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Linear(8, 4)
    >>> _ = se.prune(model, sparsity=0.5)
    >>> se.finalize(model)
    >>> se.masks(model), int((model.weight == 0).sum())
    ({}, 16)
    """
    _require_module(model)
    settle(model)
    lost: dict[str, int] = {}
    for prefix, module in list(named_modules(model)):
        for local, mask in list(masks_in(module).items()):
            held = module._parameters.get(local) is mask.parameter
            if held and mask.parameter.shape == mask.shape and mask_of(mask.parameter) is mask:
                lost |= {parameter_name(prefix, local): mask.revived()}
            drop_mask(module, local)
    dense = [f"{name} ({count:,})" for name, count in lost.items() if count]
    if dense:
        warnings.warn(
            f"finalize: pruned entries hold values and stay as they are: {', '.join(dense)}",
            stacklevel=2,
        )


# What pruning uses


def mask_layers(layers: Sequence[Layer]) -> None:
    """Mask what is zero in these layers now, and nothing else of them; no zeros, no mask."""
    for first, entries in _kept_entries(layers):
        if entries.all():
            for module, local in first.holders:
                drop_mask(module, local)
        else:
            put_masks(_name(first), first.parameter, first.holders, entries)


def keep_zeros(layers: Iterable[Layer]) -> None:
    """Mask what is zero in these layers now, besides what masks of theirs keep zero already."""
    for first, entries in _kept_entries(layers):
        narrow(_name(first), first.parameter, first.holders, entries)


def _kept_entries(layers: Iterable[Layer]) -> Iterator[tuple[Layer, torch.Tensor]]:
    """For each parameter its first layer, and True where an entry of the whole is not zero.

    Outside of the layers it is what the parameter's mask says.
    """
    by_parameter: dict[nn.Parameter, list[Layer]] = {}
    for layer in layers:
        by_parameter.setdefault(layer.parameter, []).append(layer)
    for parameter, own in by_parameter.items():
        weight = gathered(parameter)
        entries = [layer.entries(weight) for layer in own]
        if entries[0].numel() == weight.numel():
            yield own[0], weight.bool()  # four times faster than weight != 0
            continue
        mask = mask_of(parameter)
        kept = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        if mask is not None:
            kept = gathered(mask.unpack())
        for layer, found in zip(own, entries, strict=True):
            layer.entries(kept).copy_(found)
        yield own[0], kept


def narrow(name: str, parameter: nn.Parameter, holders: Owners, kept: torch.Tensor) -> None:
    """Keep these entries only, and of those no other than the masks there keep already."""
    for module, local in holders:
        mask = masks_in(module).get(local)
        if mask is not None and mask.parameter is module._parameters.get(local):
            kept = kept & entries_as(gathered(mask.unpack()), mask.parameter, parameter)
    put_masks(name, parameter, holders, kept)


def _name(layer: Layer) -> str:
    """The name of the layer's parameter, without the part."""
    return layer.name.removesuffix(f"[{layer.view.part}]") if layer.view.part else layer.name


def _held(model: nn.Module, but: Container[tuple[int, str]] = ()) -> dict[str, Mask]:
    """The masks that a model's modules hold, by name.

    Args:
        but: modules, by id, with local names, of which a mask that is lost is passed over.

    Raises:
        ValueError: a masked parameter is no longer the module's.
    """
    _require_module(model)
    settle(model)
    found: dict[str, Mask] = {}
    seen = set()
    for prefix, module in named_modules(model):
        for local in masks_in(module):
            name = parameter_name(prefix, local)
            parameter = module._parameters.get(local)
            mask = None if parameter is None else mask_of(parameter)
            if mask is None:
                if (id(module), local) in but:
                    continue
                raise ValueError(replaced(name, module, local))
            if id(mask) not in seen:
                found[name] = mask
            seen.add(id(mask))
    return found


#: A parameter, and the modules that hold it or its memory.
_Held = tuple[nn.Parameter, list[tuple[nn.Module, str]]]


def _owners(model: nn.Module) -> dict[str, _Held]:
    """Every name of every parameter, also with the prefixes of wrappers."""
    by_memory: dict[Hashable, dict[tuple[int, str], tuple[nn.Module, str]]] = {}
    named: dict[str, tuple[nn.Parameter, Hashable]] = {}
    for modules in (named_modules(model), model.named_modules(remove_duplicate=False)):
        for prefix, module in modules:
            for local, parameter in module._parameters.items():
                if parameter is not None:
                    memory = memory_of(parameter)
                    by_memory.setdefault(memory, {})[id(module), local] = (module, local)
                    named.setdefault(parameter_name(prefix, local), (parameter, memory))
    return {
        name: (parameter, list(by_memory[memory].values()))
        for name, (parameter, memory) in named.items()
    }


def _fitting(name: str, parameter: nn.Parameter, mask: Any) -> torch.Tensor:
    entries = mask.unpack() if isinstance(mask, Mask) else mask
    if isinstance(entries, torch.Tensor):
        entries = gathered(entries)
    if not isinstance(entries, torch.Tensor) or entries.dtype != torch.bool:
        got = entries.dtype if isinstance(entries, torch.Tensor) else type(entries).__name__
        raise TypeError(f"kept: expected a Mask or a boolean tensor for {name}; got {got}")
    hindrance = obstacle(parameter)
    if hindrance is not None:
        raise ValueError(f"model: {name} {hindrance}")
    if is_lazy(parameter) or parameter.is_meta:
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
