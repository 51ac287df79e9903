"""What a model sees at some sources: the dense one, beside the one that is pruned."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.batches import RefusedError
from spectral_engine.calibration.forward import Hook, ending, evaluating
from spectral_engine.calibration.inputs import Call
from spectral_engine.calibration.stages import Stage
from spectral_engine.calibration.trace import Key, Source


class DenseReference:
    """A model, and the inputs that it had at some sources in the batch it saw last."""

    def __init__(self, model: nn.Module, stages: list[Stage], end: Source | None) -> None:
        self._model, self._stages, self._end = model, stages, end
        self._seen: dict[Key, list[torch.Tensor]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "DenseReference":
        self._stack.enter_context(evaluating(self._model))
        for stage in self._stages:
            for source in stage.sources:
                module = self._model.get_submodule(source.name)
                self._stack.enter_context(source.hooked(self._keeping(source), module))
        if self._end is not None:
            module = self._model.get_submodule(self._end.name)
            self._stack.enter_context(self._end.hooked(ending, module))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _keeping(self, source: Source) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            found = source.inputs.find(Call(args, kwargs, output))
            if found is not None:  # a copy: the forward may go on to change it in place
                self._seen.setdefault(source.key, []).append(found.detach().clone())

        return hook

    @property
    def seen(self) -> list[torch.Tensor]:
        """All inputs of that batch."""
        return [tensor for tensors in self._seen.values() for tensor in tensors]

    def see(self, run: Callable[[nn.Module], None]) -> None:
        """Keep what this run of the model gives in place of what the last gave."""
        self._seen = {}
        run(self._model)

    def next_inputs(self, source: Source, like: torch.Tensor) -> torch.Tensor:
        """What the dense model had at the call that the pruned one is at now."""
        seen = self._seen.get(source.key)
        if not seen or seen[0].shape != like.shape:
            raise RefusedError(
                "asymmetric: expected the dense and the pruned model to be called alike; at "
                f"{source.name} they are not"
            )
        return seen.pop(0)
