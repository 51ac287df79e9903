"""One parameter's mask: one bit an entry, and the hooks that keep its zeros.

The parameter stays a plain parameter, and so does its gradient. Zeros could be lost at three
places, and there is a hook at each:

- the gradient is zeroed there, so that norms are clipped right and momentum stays clean;
- after each step of any `torch.optim.Optimizer`, one hook for all zeroes the entries again,
  whatever weight decay or momentum from before the pruning made of them;
- after `load_state_dict` a hook of the module does the same, and follows a parameter that
  `assign=True` has replaced.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

#: Where a module keeps the masks of its own parameters, by local name.
ATTRIBUTE = "_spectral_masks"
#: A parameter's names: modules that hold it, and what it is called there.
Owners = Iterable[tuple[nn.Module, str]]
#: Gathers the low bits of the eight bytes of a word in its top byte, that of byte i as bit i.
_GATHER = 0x0102040810204080


class Mask:
    """Which entries of a parameter are kept, and what keeps the others zero.

    parameter: whose mask it is; a copy or a pickle of a model takes both along
    packed: uint8, eight entries a byte in row-major order, the first in the lowest bit; 1 is kept
    """

    parameter: nn.Parameter
    packed: torch.Tensor

    def __init__(self, parameter: nn.Parameter, packed: torch.Tensor) -> None:
        self._attach(parameter, packed)

    @classmethod
    def of(cls, parameter: nn.Parameter, kept: torch.Tensor) -> "Mask":
        """The mask that keeps these entries: boolean, shaped as the parameter."""
        return cls(parameter, _pack(kept))

    def unpack(self) -> torch.Tensor:
        """Boolean, shaped as the parameter and on its device; True where an entry is kept."""
        if self.packed.device != self.parameter.device:
            self.packed = self.packed.to(self.parameter.device)
        return _unpack(self.packed, self.parameter.numel()).view(self.parameter.shape)

    @property
    def sparsity(self) -> float:
        """Fraction of entries that are not kept."""
        return 1.0 - int(self.unpack().sum()) / self.parameter.numel()

    @property
    def nbytes(self) -> int:
        """Memory: one bit an entry."""
        return self.packed.numel()

    def apply(self) -> None:
        """Zero what is not kept."""
        if not self.parameter.is_meta:
            # As integers: seven times faster than masked_fill_, and NaN becomes zero as well.
            _words(self.parameter.detach()).mul_(self.unpack())

    def release(self) -> None:
        """Keep nothing zero any more."""
        self._handle.remove()
        if _active.get(id(self.parameter)) is self:
            del _active[id(self.parameter)]

    def _attach(self, parameter: nn.Parameter, packed: torch.Tensor) -> None:
        self.parameter, self.packed = parameter, packed
        hook = partial(_mask_gradient, weakref.ref(self))
        trained = parameter.requires_grad
        # Autograd takes a hook only while a parameter is trained, and keeps it when it is frozen.
        parameter.requires_grad_(True)
        self._handle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
        parameter.requires_grad_(trained)
        _active[id(parameter)] = self
        _watch_optimizers()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Mask":
        return Mask(copy.deepcopy(self.parameter, memo), copy.deepcopy(self.packed, memo))

    def __getstate__(self) -> tuple[nn.Parameter, torch.Tensor]:
        return self.parameter, self.packed

    def __setstate__(self, state: tuple[nn.Parameter, torch.Tensor]) -> None:
        self._attach(*state)

    def __repr__(self) -> str:
        return f"Mask(shape={tuple(self.parameter.shape)}, sparsity={self.sparsity:.4f})"


#: The masks in force, by the id of their parameter, which each of them keeps alive.
_active: weakref.WeakValueDictionary[int, Mask] = weakref.WeakValueDictionary()


def masks_in(module: nn.Module) -> dict[str, Mask]:
    """The masks of a module's own parameters, by local name."""
    held: dict[str, Mask] = module.__dict__.get(ATTRIBUTE, {})
    return held


def mask_of(parameter: torch.Tensor) -> Mask | None:
    """The mask in force on a parameter."""
    return _active.get(id(parameter))


def put_masks(owners: Owners, kept: torch.Tensor) -> None:
    """One mask for each parameter of the same memory, held by all modules that it belongs to.

    What is not kept is taken to be zero already.
    """
    packed = _pack(kept)
    made: dict[int, Mask] = {}
    for module, local in owners:
        parameter = module._parameters[local]
        if parameter is None:
            continue
        held = module.__dict__.setdefault(ATTRIBUTE, {})
        if local in held:
            held[local].release()
        if id(parameter) not in made:
            made[id(parameter)] = Mask(parameter, packed)
        held[local] = made[id(parameter)]
        if _after_load not in module._load_state_dict_post_hooks.values():
            module.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]


def drop_mask(module: nn.Module, local: str) -> None:
    """Leave a parameter without its mask, and with its zeros; with the last one go all hooks."""
    held = masks_in(module)
    mask = held.pop(local, None)
    if mask is not None:
        if module._parameters.get(local) is mask.parameter:
            mask.apply()
        mask.release()
    if not held:
        module.__dict__.pop(ATTRIBUTE, None)
        hooks = module._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _after_load]:
            del hooks[key]


# The hooks


def _mask_gradient(
    reference: Callable[[], Mask | None], gradient: torch.Tensor
) -> torch.Tensor | None:
    """The gradient without what would go to a pruned entry, NaN and infinity there included."""
    mask = reference()
    if mask is None:
        return None
    kept = mask.unpack()
    if gradient.layout == torch.sparse_coo:  # of an embedding: whole rows
        gradient = gradient.coalesce()
        rows = gradient.indices()[0]
        values = gradient.values().masked_fill(~kept[rows], 0)
        return torch.sparse_coo_tensor(
            gradient.indices(), values, gradient.shape, check_invariants=False, is_coalesced=True
        )
    if gradient.requires_grad:  # to be differentiated again
        return gradient.masked_fill(~kept, 0)
    return (_words(gradient) * kept).view(gradient.dtype)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if _active:
        for parameter in _parameters(optimizer):
            mask = _active.get(id(parameter))
            if mask is not None:
                mask.apply()


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield from group["params"]


_watching = False


def _watch_optimizers() -> None:
    """Have `_after_step` called after each step of every optimizer, from the first mask on."""
    global _watching  # noqa: PLW0603
    if not _watching:
        register_optimizer_step_post_hook(_after_step)
        _watching = True


def _after_load(module: nn.Module, incompatible_keys: Any) -> None:
    """Zero what has been loaded, and follow a parameter that was replaced by it."""
    held = masks_in(module)
    for local, mask in held.items():
        parameter = module._parameters.get(local)
        if parameter is not None and parameter is not mask.parameter:
            if parameter.shape != mask.parameter.shape:
                continue  # for `masks` to refuse
            mask.release()
            held[local] = Mask(parameter, mask.packed)
        held[local].apply()


# One bit an entry

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _words(values: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the same size."""
    return values.view(_INTEGERS[values.itemsize])


def _pack(kept: torch.Tensor) -> torch.Tensor:
    """Eight booleans a byte, the first in the lowest bit; the last byte is filled up with zeros."""
    entries = kept.reshape(-1).contiguous()
    if entries.device.type == "cpu":  # NumPy has it as one operation, three times as fast
        return torch.from_numpy(np.packbits(entries.numpy(), bitorder="little"))
    missing = -entries.numel() % 8
    if missing:
        entries = torch.cat((entries, entries.new_zeros(missing)))
    words = entries.view(torch.uint8).view(torch.int64)
    return (words.mul(_GATHER) >> 56).to(torch.uint8)


def _unpack(packed: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` booleans of eight a byte."""
    if packed.device.type == "cpu":
        bits = np.unpackbits(packed.numpy(), count=count, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    words = _table(packed.device).index_select(0, packed.int())
    return words.view(torch.bool)[:count]


_TABLES: dict[torch.device, torch.Tensor] = {}


def _table(device: torch.device) -> torch.Tensor:
    """int64 (256,): the eight bits of each byte, as the eight bytes of a word."""
    if device not in _TABLES:
        bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
        _TABLES[device] = bits.to(torch.uint8).view(torch.int64).reshape(-1).to(device)
    return _TABLES[device]
