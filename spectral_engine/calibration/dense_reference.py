"""The dense model beside the one that is pruned: what it sees where the other is looked at."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.forward import Forward, Hook, ending, evaluating, until_end
from spectral_engine.calibration.inputs import Call
from spectral_engine.calibration.stages import Key, Source, Stage, end_of


class DenseTwin:
    """The dense model, and the inputs it had at a stage's sources in the batch that it saw last."""

    def __init__(self, model: nn.Module, stages: list[Stage]) -> None:
        self._model = model
        self._stages = stages
        self._seen: dict[Key, list[torch.Tensor]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "DenseTwin":
        self._stack.enter_context(evaluating(self._model))
        for stage in self._stages:
            for source in stage.sources:
                module = self._model.get_submodule(source.name)
                self._stack.enter_context(source.hooked(self._keeping(source), module))
        end = end_of(self._stages)
        if end is not None:
            self._stack.enter_context(end.hooked(ending, self._model.get_submodule(end.name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _keeping(self, source: Source) -> Hook:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            found = source.inputs.find(Call(args, kwargs, output))
            if found is not None:
                self._seen.setdefault(source.key, []).append(found.detach())

        return hook

    def see(self, run: Forward, batch: Any) -> None:
        """Keep what this batch gives in place of what the last gave."""
        self._seen = {}
        until_end(partial(run, self._model, batch))

    def next_inputs(self, source: Source, like: torch.Tensor) -> torch.Tensor:
        """What the dense model had at the call that the pruned one is at now."""
        seen = self._seen.get(source.key)
        if not seen or seen[0].shape != like.shape:
            raise ValueError(
                "asymmetric: expected the dense and the pruned model to be called alike; at "
                f"{source.name} they are not"
            )
        return seen.pop(0)
