"""The hooks at the steps of every optimizer: masks are checked before a step, and applied after it.

Before a step, pruned entries are zero, since the last step left them so. Where they are not, some
other code has written them (an adapter merged into the weight, data assigned), and applying the
mask would destroy what it wrote. Where the parameter is another one, or has another shape, the
model was sharded or wrapped, and the mask would be lost or laid over other entries. Both are an
error, by name, before the step is taken.
"""

import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)


class Watched(Protocol):
    """A mask, as the hooks see it."""

    parameter: nn.Parameter

    def apply(self) -> None:
        """Zero what is not kept."""

    def require_whole(self, name: str = "") -> None:
        """Refuse a parameter that is not the one that was masked, or is but was written to."""

    def samples(self) -> Iterator[torch.Tensor]:
        """Some of what has to be zero before a step, flat."""
        ...

    def clean_sharded_gradient(self) -> None:
        """Zero what is not kept in the gradient of a sharded parameter."""

    def lost_to(self, modules: set[int], trained: set[int]) -> str | None:
        """What is wrong if the masked weight is trained as something else, None if it is not."""
        ...


#: The masks in force, by the id of their parameter, which each of them keeps alive.
active: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_watching = False


def watch_optimizers() -> None:
    """Have both hooks called at each step of every optimizer, from the first mask on."""
    global _watching  # noqa: PLW0603
    if not _watching:
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
        _watching = True


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Refuse the step if a mask is lost, or what it keeps zero is not zero.

    Raises:
        ValueError: names the parameter, what happened to it, and what can be done.
    """
    if not active or _cannot_look():
        return
    parameters = list(_parameters(optimizer))
    trained = {id(parameter) for parameter in parameters}
    flattened = {id(module) for parameter in parameters for module in _modules_in(parameter)}
    masks: list[Watched] = []
    for mask in list(active.values()):
        if id(mask.parameter) in trained:
            masks.append(mask)
        else:
            lost = mask.lost_to(flattened, trained)
            if lost is not None:
                raise ValueError(lost)
    for mask in masks:
        mask.clean_sharded_gradient()
    if _any_not_zero(masks):
        for mask in masks:
            mask.require_whole()


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if active:
        for parameter in _parameters(optimizer):
            mask = active.get(id(parameter))
            if mask is not None:
                mask.apply()


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _modules_in(parameter: Any) -> Iterator[nn.Module]:
    """The modules whose weights FullyShardedDataParallel has put into one flat parameter."""
    for info in getattr(parameter, "_param_infos", ()):
        yield info.module


def _cannot_look() -> bool:
    """Whether the step is being compiled or captured, so that no value can be looked at."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _any_not_zero(masks: list[Watched]) -> bool:
    """Whether one of the masks' samples holds a value; one look for all of a device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for mask in masks:
        for sample in mask.samples():
            groups.setdefault((sample.device, sample.dtype), []).append(sample)
    return any(bool(torch.cat(samples).any()) for samples in groups.values())
