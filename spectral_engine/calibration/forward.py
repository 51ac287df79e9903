"""Run a model over batches: in evaluation mode, with hooks, as far as something is wanted."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spectral_engine._util.observe import random_state_kept

#: Called with a module, its arguments and, once its forward is over, its output.
Hook = Callable[..., None]


class _EndReachedError(Exception):
    """Ends a forward pass that has nothing more to show."""


def ending(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
    """A hook that ends the pass; see `until_end`."""
    raise _EndReachedError


def until_end(run: Callable[[], Any]) -> None:
    """Call run(), which a hook may end."""
    try:
        run()
    except _EndReachedError:
        return


@contextmanager
def hooked(module: nn.Module, hook: Hook, after: bool = False) -> Iterator[None]:
    """hook(module, args, kwargs) before each forward of the module, or with its output `after` it.

    It sees what the forward itself takes and gives: other hooks may change arguments before it,
    and the output only behind it. `ending` lets all others see the call first.
    """
    if after:
        first = hook is not ending
        handle = module.register_forward_hook(hook, with_kwargs=True, prepend=first)
    else:
        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Calls of the module run this function in place of its own forward; its hooks stay."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = own


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, every module called; afterwards all is as it was.

    Training flags, buffers and the random state come back. Code that was compiled before a hook
    was there does not call it, and the fused path of an encoder layer calls none of its modules:
    neither is taken meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(random_state_kept(model))
        stack.enter_context(_buffers_kept(model))
        model.eval()
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            with torch.no_grad(), _uncompiled():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for module, training in modes:
                if module.training is not training:  # by its own method, which may do more
                    module.train(training)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Buffers that a forward counts or caches in are as they were afterwards."""
    kept = [
        (module, name, buffer, buffer.detach().clone(), _version(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for module, name, buffer, values, version in kept:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            if _version(buffer) != version:
                buffer.detach().copy_(values)


def _version(buffer: torch.Tensor) -> int:
    return 0 if buffer.is_inference() else buffer._version


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled models run as they were written."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it is slow
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def require_loaded(model: nn.Module) -> None:
    """Refuse weights that are elsewhere until a layer's turn comes, or made by the first forward.

    Raises:
        ValueError: names the weight, and the way out.
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"model: {name} has no shape yet; run the model once, so that lazy layers are "
                "initialised"
            )
        if parameter.is_meta:
            raise ValueError(
                f"calibration: {name} is on the meta device: offloaded, or not loaded yet; expected"
                " all weights in memory, as from_pretrained without device_map loads them; or prune"
                " the folder on disk, one block in memory, by prune_file(IN, OUT, calibration=...)"
            )
