"""Where masks are held: by each module for its own parameters; followed when it loads others."""

from typing import Any

import torch
from torch import nn

from spectral_engine.distributed.shards import is_sharded, own_part
from spectral_engine.layers.storage import entries_as, obstacle
from spectral_engine.masking.bits import pack
from spectral_engine.masking.gradients import clean_gradient
from spectral_engine.masking.mask import Mask, Owners

#: Where a module keeps the masks of its own parameters, by local name.
ATTRIBUTE = "_spectral_masks"


def masks_in(module: nn.Module) -> dict[str, Mask]:
    """The masks of a module's own parameters, by local name."""
    held: dict[str, Mask] = module.__dict__.get(ATTRIBUTE, {})
    return held


def put_masks(name: str, parameter: nn.Parameter, owners: Owners, kept: torch.Tensor) -> None:
    """One mask for each parameter of the same memory, held by all modules that it belongs to.

    Args:
        name: of the parameter, for messages.
        parameter: which `kept` is shaped as; what is not kept is taken to be zero already.
        owners: all modules that hold it, or another parameter of its memory.
        kept: boolean, True where an entry is kept; of a sharded parameter the whole.
    """
    packed, count = pack(own_part(kept, parameter)), int(kept.sum())
    made: dict[int, Mask] = {}
    by_parameter: dict[int, list[tuple[nn.Module, str]]] = {}
    for module, local in owners:
        by_parameter.setdefault(id(module._parameters[local]), []).append((module, local))
    for holders in by_parameter.values():
        own = holders[0][0]._parameters[holders[0][1]]
        if own is None:
            continue
        entries = entries_as(kept, parameter, own)
        for module, local in holders:
            held = module.__dict__.setdefault(ATTRIBUTE, {})
            if local in held:
                held[local].release()
            if id(own) not in made:
                part = own_part(entries, own)
                bits = packed if entries is kept else pack(part)
                made[id(own)] = Mask(own, bits, count, name, holders)
                clean_gradient(own, part)
            held[local] = made[id(own)]
            if _after_load not in module._load_state_dict_post_hooks.values():
                module.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]


def drop_mask(module: nn.Module, local: str) -> None:
    """Leave a parameter without its mask, as it is; with the last one go all hooks."""
    held = masks_in(module)
    mask = held.pop(local, None)
    if mask is not None:
        mask.release()
    if not held:
        module.__dict__.pop(ATTRIBUTE, None)
        hooks = module._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _after_load]:
            del hooks[key]


def _after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Zero what has been loaded, and follow a parameter that was replaced by it."""
    held = masks_in(module)
    for local, mask in held.items():
        parameter = module._parameters.get(local)
        if parameter is not None and parameter is not mask.parameter:
            alike = parameter.shape == mask.shape
            alike &= is_sharded(parameter) is is_sharded(mask.parameter)
            if not alike or obstacle(parameter) is not None:
                continue  # for `masks` and the next step to refuse
            mask.release()
            held[local] = Mask(parameter, mask.packed, mask.kept, mask.name, [(module, local)])
        held[local].apply()
