"""What is asked of a calibration: how it is run, and for which layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from spectral_engine._util.checks import boolean, integer
from spectral_engine.calibration.forward import Forward, check_batches
from spectral_engine.layers.find import Layer
from spectral_engine.recipe.refits import Refit

#: Bytes of moments, and of the working memory of a refit beside them, unless the caller says.
MAX_BYTES = 1 << 32


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches of a model's inputs, and how its layers' inputs are gathered from them.

    Args:
        batches: an iterable that can be gone through several times, such as a list or a DataLoader.
            A batch is a tensor, given to the model as it is; a dictionary, given by keywords; or a
            tuple or list, of which as many leading items as the model's forward takes are given, so
            that labels are left out. One tensor or dictionary stands for a list of it.
        forward: called as forward(model, batch) instead of the model, for other batches.
        sequential: True takes a layer's inputs from the model with the layers before it pruned, one
            pass a layer, in the memory of the largest layer's moments and as much again (SparseGPT
            and ALPS take more); False from the dense model, in one pass, which holds all layers'
            moments at once. None takes as many layers a pass as fit in the memory that True takes,
            each seen through the layers that earlier passes pruned.
        asymmetric: fit what the layer gives in the dense model, of which a copy is held meanwhile
            (GPTAQ, arXiv 2504.02692); only where the calibration is sequential.
        max_bytes: the most that moments and the working memory of the refit may take, the pruned
            weight included.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.
    """

    batches: Any
    forward: Forward | None = field(default=None, kw_only=True)
    sequential: bool | None = field(default=None, kw_only=True)
    asymmetric: bool = field(default=False, kw_only=True)
    max_bytes: int = field(default=MAX_BYTES, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.batches, torch.Tensor | Mapping):
            object.__setattr__(self, "batches", [self.batches])
        check_batches(self.batches)
        if self.forward is not None and not callable(self.forward):
            raise TypeError(
                f"forward: expected a function of model and batch; got {self.forward!r}"
            )
        if self.sequential is not None:
            boolean("sequential", self.sequential)
        boolean("asymmetric", self.asymmetric)
        integer("max_bytes", self.max_bytes)
        if self.asymmetric and self.sequential is False:
            raise ValueError(
                "asymmetric: only a sequential calibration differs from the dense model"
            )


class Request(NamedTuple):
    """A layer whose moments are wanted, and the refit that they are for."""

    layer: Layer
    refit: Refit | None
