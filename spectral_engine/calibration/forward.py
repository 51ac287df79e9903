"""Run a model over batches: in evaluation mode, with hooks, as far as something is wanted."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

#: Runs a model over one batch.
Forward = Callable[[nn.Module, Any], Any]
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
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, every module called; each one's own mode comes back.

    Code that was compiled before a hook was there does not call it, and the fused path of an
    encoder layer calls none of its modules: neither is taken meanwhile.
    """
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
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
def _uncompiled() -> Iterator[None]:
    """Compiled models run as they were written."""
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it is slow
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def call(model: nn.Module, batch: Any) -> Any:
    """The model of a batch: a dictionary by keywords; of a tuple or list what its forward takes.

    That is as many of the first items as its forward has places for, so that labels that come with
    inputs are left out.
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch[: _places(model)])
    return model(batch)


def _places(model: nn.Module) -> int | None:
    """How many arguments a model's forward takes by position, None for any number.

    A wrapper that hands on whatever it is given takes what the module inside it takes.
    """
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        inside = (getattr(model, name, None) for name in ("_orig_mod", "module"))
        return next((_places(one) for one in inside if isinstance(one, nn.Module)), None)
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(kind in by_place for kind in kinds)


def check_batches(batches: Any) -> None:
    """TypeError unless these can be gone through several times."""
    if isinstance(batches, Iterator):
        raise TypeError(
            "calibration: expected batches that can be gone through several times, such as a list "
            f"or a DataLoader; got {type(batches).__name__}, which list() would make one"
        )
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise TypeError(f"calibration: expected batches; got {type(batches).__name__}")


def finite_batches(batches: Iterable[Any], device: torch.device | None) -> Iterator[Any]:
    """The batches, on a device.

    Raises:
        ValueError: one holds NaN or infinity, or there is none.
    """
    none = True
    for index, batch in enumerate(batches):
        none = False
        for tensor in tensors_of(batch):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"calibration: batch {index} holds NaN or infinity")
        yield moved(batch, device)
    if none:
        raise ValueError("calibration: expected at least one batch; got none")


def tensors_of(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors of a batch, at any depth of tuples, lists and dictionaries."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from tensors_of(value)


def moved(batch: Any, device: torch.device | None) -> Any:
    """The batch on a device; what is no tensor, tuple, list or dictionary stays as it is."""
    if isinstance(batch, PackedSequence):  # a tuple, but its lengths stay on the CPU
        return batch if device is None else batch.to(device)  # type: ignore[arg-type]
    if isinstance(batch, torch.Tensor):
        return batch if device is None else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(moved(value, device) for value in batch)
    return batch
