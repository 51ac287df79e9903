"""One parameter's mask: one bit an entry, and the hooks that keep its zeros.

The parameter stays a plain parameter, and so does its gradient. Zeros could be lost at three
places, and there is a hook at each:

- the gradient is zeroed there, so that norms are clipped right and momentum stays clean;
- after each step of any `torch.optim.Optimizer`, one hook for all zeroes the entries again,
  whatever weight decay or momentum from before the pruning made of them;
- after `load_state_dict` a hook of the module does the same, and follows a parameter that
  `assign=True` has replaced.

What no hook can keep is refused by name before the next step is taken, see `watch`: a parameter
that was replaced, or sharded after it was masked, and pruned entries that other code has written
to. Of a parameter that is sharded already each process masks its own part; FSDP2 sets its gradient
without the hook, so that it is zeroed before each step instead.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from spectral_engine.distributed.groups import several_processes
from spectral_engine.distributed.shards import here, is_sharded, like, own_part
from spectral_engine.layers.storage import obstacle
from spectral_engine.layers.unseen import FLAT
from spectral_engine.masking.bits import pack, unpack, words
from spectral_engine.masking.gradients import clean_gradient, sharded_alike, without_pruned
from spectral_engine.masking.watch import active, watch_optimizers

#: A parameter's names: modules that hold it, and what it is called there.
Owners = Iterable[tuple[nn.Module, str]]
#: Entries of a parameter that are looked at before each step.
_SAMPLES = 256


class Mask:
    """Which entries of a parameter are kept, and what keeps the others zero.

    Made by `prune`, `mask_zeros` and `apply_masks`; `masks` lists those of a model.

    Attributes:
        parameter: whose mask it is; a copy or a pickle of a model takes both along.
        packed: uint8, eight entries a byte in row-major order, the first in the lowest bit; 1 is
            kept. Of a sharded parameter (DTensor), that of the entries that this process holds.
        shape: of the parameter when it was masked, the whole of it.
        name: of the parameter in its model, for messages.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Linear(4, 2)
    >>> _ = se.prune(model, sparsity=0.75)
    >>> mask = se.masks(model)["weight"]
    >>> mask
    Mask(shape=(2, 4), sparsity=0.7500)
    >>> mask.nbytes, int(mask.unpack().sum())
    (1, 2)
    """

    parameter: nn.Parameter
    packed: torch.Tensor
    shape: torch.Size
    name: str
    kept: int  # entries of the whole parameter
    _places: tuple[torch.Tensor, ...] | None  # where `samples` looks; None before the first step

    def __init__(
        self,
        parameter: nn.Parameter,
        packed: torch.Tensor,
        kept: int,
        name: str = "",
        owners: Owners = (),
    ) -> None:
        self._attach(parameter, packed, kept, parameter.shape, name, owners)

    @classmethod
    def of(cls, parameter: nn.Parameter, kept: torch.Tensor) -> "Mask":
        """The mask that keeps some entries of a parameter, for `apply_masks`.

        Args:
            parameter: which it is for; nothing of it is changed.
            kept: boolean, shaped as the parameter; True where an entry is kept. Of a sharded one
                the whole, the same on every process.

        Returns:
            The mask.

        Raises:
            TypeError, ValueError: name the argument, what was expected and what came.
        """
        if not isinstance(parameter, nn.Parameter) or not parameter.is_floating_point():
            got = getattr(parameter, "dtype", type(parameter).__name__)
            raise TypeError(f"parameter: expected a floating-point torch.nn.Parameter; got {got}")
        if not isinstance(kept, torch.Tensor) or kept.dtype != torch.bool:
            got = getattr(kept, "dtype", type(kept).__name__)
            raise TypeError(f"kept: expected a boolean tensor; got {got}")
        if kept.layout != torch.strided or kept.is_meta or kept.shape != parameter.shape:
            raise ValueError(
                f"kept: expected a dense mask of shape {tuple(parameter.shape)}; "
                f"got {tuple(kept.shape)}, {kept.layout}, on {kept.device}"
            )
        return cls(parameter, pack(own_part(kept, parameter)), int(kept.sum()))

    def unpack(self) -> torch.Tensor:
        """Which entries are kept.

        Returns:
            Boolean, shaped as the parameter and on its device, sharded as it is; True where an
            entry is kept.

        Raises:
            ValueError: the parameter has another shape now, as sharding gives it.
        """
        return like(self.unpack_here(), self.parameter)

    def unpack_here(self) -> torch.Tensor:
        """`unpack`, but of a sharded parameter the entries that this process holds, plain."""
        self._require_shape()
        values = here(self.parameter)
        if self.packed.device != values.device:
            self.packed = self.packed.to(values.device)
        return unpack(self.packed, values.numel()).view(values.shape)

    @property
    def sparsity(self) -> float:
        """Fraction of entries that are not kept, of the whole parameter."""
        self._require_shape()
        return 1.0 - self.kept / self.parameter.numel()

    @property
    def nbytes(self) -> int:
        """Memory in bytes: one bit an entry."""
        return self.packed.numel()

    def apply(self) -> None:
        """Zero what is not kept, in place; NaN there becomes zero as well."""
        if not self.parameter.is_meta:
            # As integers: seven times faster than masked_fill_.
            words(here(self.parameter)).mul_(self.unpack_here())

    def release(self) -> None:
        """Keep nothing zero any more; the values stay as they are."""
        self._handle.remove()
        if active.get(id(self.parameter)) is self:
            del active[id(self.parameter)]

    # What the hooks of `watch` ask

    def revived(self) -> int:
        """How many entries that are not kept hold a value."""
        if self.parameter.is_meta:
            return 0
        return int(((here(self.parameter) != 0) & ~self.unpack_here()).sum())

    def require_whole(self, name: str = "") -> None:
        """Refuse a parameter that has another shape or values where it was pruned.

        Args:
            name: of the parameter now, in place of that when it was masked.

        Raises:
            ValueError: names it, and says what can be done.
        """
        name = name or self.name
        revived = self.revived()
        if revived:
            raise ValueError(
                f"model: {revived:,} pruned entries of {name} hold values, which something "
                "has written since: an adapter merged into the weight, weights of another process, "
                "or data assigned; call apply_masks(model, {}) to zero them again, "
                "mask_zeros(model) to keep the zeros that are left, or finalize(model) to train "
                "all entries"
            )
        gradient = self.parameter.grad
        if gradient is None or not several_processes() or is_sharded(self.parameter):
            return
        strange = int(((gradient.to_dense() != 0) & ~self.unpack()).sum())
        if strange:
            raise ValueError(
                f"model: the gradient of {name} holds values at {strange:,} pruned entries, "
                "which came from other processes: they have pruned other entries, as calibration "
                "with each process's own batches does; prune the model on one process, or on all "
                "with the same batches and seed, and load that before it is wrapped"
            )

    def samples(self) -> Iterator[torch.Tensor]:
        """Some of what has to be zero before a step, flat; all of it for the first time."""
        self._require_shape()
        if not self._owners or self.parameter.is_meta:
            return
        looked_at, gradient = [here(self.parameter)], self.parameter.grad
        if is_sharded(self.parameter):
            gradient = None
        if gradient is not None and gradient.layout == torch.strided and several_processes():
            looked_at.append(gradient.detach())
        places = self._places
        if places is None or places[0].device != looked_at[0].device:
            dropped = ~self.unpack_here()
            self._places = _spread(dropped)
            yield from (values[dropped] for values in looked_at)
        else:
            yield from (values[places] for values in looked_at)

    def clean_sharded_gradient(self) -> None:
        """Zero what is not kept in the gradient of a sharded parameter, which no hook has seen."""
        if is_sharded(self.parameter):
            clean_gradient(self.parameter, self.unpack_here())

    def lost_to(self, modules: set[int], trained: set[int]) -> str | None:
        """What is wrong if the masked weight is trained as something else, None if it is not.

        Args:
            modules: ids of those whose weights are trained as part of a flat parameter.
            trained: ids of the parameters that are trained.
        """
        if hasattr(self.parameter, "_hp_mapping"):  # as DeepSpeed links a weight to its copy
            return (
                f"model: DeepSpeed ZeRO trains a copy of {self.name} that no mask is on, and its "
                "zeros are not kept; train it without ZeRO (FSDP2's fully_shard is supported), or "
                "call finalize(model) to go on without masks"
            )
        owners = [(module(), local) for module, local in self._owners]
        for module, local in owners:
            now = None if module is None else module._parameters.get(local)
            if module is None or now is self.parameter or (now is not None and id(now) in active):
                continue  # gone, trained by another optimizer, or masked anew
            own = id(module) in modules or any(id(one) in trained for one in module.parameters())
            if own:
                return replaced(self.name, module, local)
        return None

    def _require_shape(self) -> None:
        if self.parameter.shape != self.shape:
            raise ValueError(
                f"model: {self.name} was masked with the shape {tuple(self.shape)} and has "
                f"{tuple(self.parameter.shape)} now, as FullyShardedDataParallel gives it, which "
                "is not supported; train it unsharded or by fully_shard, or call finalize(model) "
                "to go on without masks"
            )
        part = here(self.parameter)
        if self.packed.numel() != -(-part.numel() // 8):
            raise ValueError(
                f"model: {self.name} is sharded otherwise than when it was masked; call "
                "mask_zeros(model) to keep the zeros that it has now, or finalize(model)"
            )

    def _attach(
        self,
        parameter: nn.Parameter,
        packed: torch.Tensor,
        kept: int,
        shape: torch.Size,
        name: str,
        owners: Owners,
    ) -> None:
        self.parameter, self.packed, self.kept = parameter, packed, kept
        self.shape, self.name = shape, name
        self._owners = [(weakref.ref(module), local) for module, local in owners]
        self._places = None
        hook = partial(_mask_gradient, weakref.ref(self))
        trained = parameter.requires_grad
        # Autograd takes a hook only while a parameter is trained, and keeps it when it is frozen.
        parameter.requires_grad_(True)
        self._handle = parameter.register_hook(hook)  # type: ignore[no-untyped-call]
        parameter.requires_grad_(trained)
        active[id(parameter)] = self
        watch_optimizers()

    @property
    def owners(self) -> list[tuple[nn.Module, str]]:
        """The modules that hold the parameter, and what it is called there."""
        found = ((module(), local) for module, local in self._owners)
        return [(module, local) for module, local in found if module is not None]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Mask":
        owners = [(memo[id(one)], local) for one, local in self.owners if id(one) in memo]
        parameter, packed = copy.deepcopy((self.parameter, self.packed), memo)
        return Mask(parameter, packed, self.kept, self.name, owners)

    def __getstate__(self) -> tuple[Any, ...]:
        return self.parameter, self.packed, self.kept, self.shape, self.name, self.owners

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._attach(*state)

    def __repr__(self) -> str:
        return f"Mask(shape={tuple(self.shape)}, sparsity={self.sparsity:.4f})"


def mask_of(parameter: torch.Tensor) -> Mask | None:
    """The mask in force on a parameter."""
    mask: Mask | None = active.get(id(parameter))
    return mask


def replaced(name: str, module: nn.Module, local: str) -> str:
    """That a masked parameter was replaced, and the way out that is open."""
    now = module._parameters.get(local)
    if now is None:
        advice = "it is no parameter of its own any more; call finalize(model)"
    elif obstacle(now) is not None or (now.ndim < 2 and not is_sharded(now)):
        hindrance = obstacle(now) or FLAT
        advice = f"it {hindrance.partition(';')[0]}; train it unsharded, or call finalize(model)"
    else:
        advice = "call mask_zeros(model) to keep those that it has now, or finalize(model)"
    return f"model: {name} was replaced after it was masked, and its zeros are not kept; {advice}"


# The hook of a parameter


def _mask_gradient(
    reference: Callable[[], Mask | None], gradient: torch.Tensor
) -> torch.Tensor | None:
    """The gradient without what would go to a pruned entry, NaN and infinity there included."""
    mask = reference()
    if mask is None or (is_sharded(gradient) and not sharded_alike(gradient, mask.parameter)):
        return None
    return without_pruned(gradient, mask.unpack())


def _spread(dropped: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Where to look before each step: entries of the mask that are not kept, all over it."""
    generator = torch.Generator().manual_seed(0)
    flat = dropped.reshape(-1)
    if not flat.numel():  # a process without a part of the parameter
        return tuple(torch.zeros(0, dtype=torch.long, device=flat.device) for _ in dropped.shape)
    tried = torch.randint(flat.numel(), (_SAMPLES,), generator=generator).to(flat.device)
    found = tried[flat[tried]]
    if not len(found):
        found = flat.byte().argmax()[None]
        found = found[flat[found]]
    return torch.unravel_index(found, dropped.shape)
