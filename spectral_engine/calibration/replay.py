"""What modules before the unfinished layers gave, kept from pass to pass instead of run again.

A pass over a deep network would begin at its start each time, and many passes would cost the square
of the depth. What ran before the first layer that is still to be pruned is final: its outputs are
kept, those of the largest modules in place of what is inside them, and given back in later passes.
One pass then runs little more than one block.

Not kept are outputs that share memory with what the module was given, those of a module that
changes what it was given, and what is not made of tensors. A module that leaves something behind
elsewhere for another is not known by this; the calibrator compares, in the first batch of every
pass, what layers see with and without the outputs that are kept.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.batches import copied, tensors_of
from spectral_engine.calibration.forward import forward_replaced, hooked
from spectral_engine.calibration.trace import Source

#: A module, and which of its calls in a batch.
_Call = tuple[int, int]


class Replay:
    """Outputs of a model's modules, by batch, in at most so many bytes."""

    def __init__(
        self, model: nn.Module, max_bytes: int, roots: Sequence[nn.Module] | None = None
    ) -> None:
        """Keeps what modules inside the model give, or those inside some `roots` of it."""
        self._model, self._left, self._roots = model, max_bytes, roots or [model]
        self._kept: dict[int, dict[_Call, tuple[Any, list[_Call]]]] = {}
        self._here: dict[_Call, tuple[Any, list[_Call]]] = {}
        self._calls: Counter[int] = Counter()
        self._log: list[_Call] = []
        self._final = self._giving = False

    def keeps(self, batch: int) -> bool:
        """Whether something of this batch is kept."""
        return bool(self._kept.get(batch))

    def forget(self) -> None:
        """Keep nothing of what is kept."""
        self._left += sum(map(_bytes, self._kept.values()))
        self._kept = {}

    def stop(self) -> None:
        """Keep nothing any more."""
        self.forget()
        self._left = 0

    @contextmanager
    def watching(self, unfinished: Iterable[Source]) -> Iterator[None]:
        """Every module gives what is kept of it, and is kept if no unfinished layer ran before."""
        with ExitStack() as stack:
            modules = {source.name: self._model.get_submodule(source.name) for source in unfinished}
            for module in modules.values():
                stack.enter_context(hooked(module, self._reached))
            for module in (inside for root in self._roots for inside in list(root.modules())[1:]):
                if not isinstance(module, torch.jit.ScriptModule):
                    forward = self._keeping(module, module.forward)
                    stack.enter_context(forward_replaced(module, forward))
            yield

    @contextmanager
    def batch(self, index: int, *, giving: bool = True) -> Iterator[None]:
        """What runs inside is this batch; with `giving`, from what is kept."""
        self._here = self._kept.setdefault(index, {})
        self._calls, self._log = Counter(), []
        self._final, self._giving = giving, giving
        try:
            yield
        finally:
            self._final = self._giving = False

    def _reached(self, *_: Any) -> None:
        self._final = False

    def _keeping(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            call = id(module), self._calls[id(module)]
            self._note([call])
            if self._giving and call in self._here:
                output, inside = self._here[call]
                self._note(inside)
                return copied(output, None)
            if not self._final:
                return forward(*args, **kwargs)
            given = list(tensors_of((args, kwargs)))
            versions, start = [_version(tensor) for tensor in given], len(self._log)
            output = forward(*args, **kwargs)
            unchanged = versions == [_version(tensor) for tensor in given]
            if self._final and unchanged and _may_be_kept(output, given):
                self._keep(call, output, self._log[start:])
            return output

        return run

    def _note(self, calls: list[_Call]) -> None:
        for module, number in calls:
            self._calls[module] = number + 1
        self._log += calls

    def _keep(self, call: _Call, output: Any, inside: list[_Call]) -> None:
        """Keep an output in place of what is kept of the calls inside it."""
        freed = {one: self._here[one] for one in inside if one in self._here}
        room = self._left + _bytes(freed)
        size = _bytes({call: (output, inside)})
        if size > room:
            return
        for one in freed:
            del self._here[one]
        self._here[call] = copied(output, None), inside
        self._left = room - size


def _bytes(kept: Mapping[_Call, tuple[Any, list[_Call]]]) -> int:
    return sum(tensor.nbytes for output, _ in kept.values() for tensor in tensors_of(output))


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _may_be_kept(output: Any, given: list[torch.Tensor]) -> bool:
    """Whether a copy of an output is as good as the output itself."""
    if not _of_tensors(output):
        return False
    memory = {tensor.untyped_storage().data_ptr() for tensor in given}
    return all(
        tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() not in memory
        for tensor in tensors_of(output)
    )


def _of_tensors(output: Any) -> bool:
    if type(output) in (tuple, list):
        return all(map(_of_tensors, output))
    return output is None or type(output) is torch.Tensor
