"""The linear layer of GPT-2 and its kin, whose weight is stored (in, out), without its zeros.

A file holds the weight as the model stores it, a row for each input. Products need a row for each
output: the module turns the weight when it is loaded, and back when its state dict is taken.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spectral_engine.checkpoints.sparse import forms
from spectral_engine.compression import operators
from spectral_engine.compression.linear import SparseLinear
from spectral_engine.compression.weights import parts_of_dense

#: Known by its name, so that transformers need not be imported.
_NAME = "transformers.pytorch_utils.Conv1D"


def is_conv1d(kind: type) -> bool:
    """Whether a class is transformers' Conv1D itself."""
    return f"{kind.__module__}.{kind.__qualname__}" == _NAME


class SparseConv1D(SparseLinear):
    """y = x W + bias of a pruned weight W (in, out); see `SparseLinear` for what it holds.

    Its buffers are the parts of W transposed. Its state dict holds those of W, made when it is
    taken, as files have them.

    Args:
        parts: of W, in one of the forms; `settle` turns them.
        layer: a Conv1D of transformers; its weight is not kept.
    """

    def __init__(self, parts: Mapping[str, torch.Tensor], layer: Any) -> None:
        super().__init__(parts, tuple(layer.weight.shape), layer.bias)
        self.in_features, self.out_features = layer.weight.shape
        self.kind, self.turned = type(layer), False

    @classmethod
    def from_dense(cls, layer: Any) -> "SparseConv1D":
        """Of a Conv1D; the bias is the same parameter.

        Raises:
            TypeError: no Conv1D of transformers.
        """
        if not is_conv1d(type(layer)):
            raise TypeError(f"layer: expected a {_NAME}; got {type(layer).__name__}")
        made = cls(parts_of_dense(layer.weight), layer)
        made.settle()
        return made

    @property
    def weight(self) -> torch.Tensor:
        """The dense weight (in, out), made anew at each access."""
        made = self._matrix()
        return made.t().contiguous() if self.turned else made

    def to_dense(self) -> Any:
        """A Conv1D of the same weight, which can be trained, and the same bias."""
        with torch.device("meta"):
            layer = self.kind(self.out_features, self.in_features)
        layer.weight, layer.bias = nn.Parameter(self.weight), self.bias
        return layer

    def settle(self) -> None:
        """Hold the weight turned, in a form that products read.

        Raises:
            ValueError: parts that do not belong together.
        """
        super().settle()
        if not self.turned and not self.compressed.is_meta:
            self._hold(parts_of_dense(self._matrix().t()))
            self._face(turned=True)

    def _matrix(self) -> torch.Tensor:
        dense: torch.Tensor = operators.sparse_dense(*self.arrays, self.rows, self.columns)
        return dense

    def _face(self, *, turned: bool) -> None:
        self.turned = turned
        self.rows, self.columns = self.weight_shape[::-1] if turned else self.weight_shape

    def _loaded(self) -> None:
        self._face(turned=False)
        self.settle()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.turned:
            for name in forms.EVERY_PART:
                destination.pop(prefix + name, None)
            for name, part in parts_of_dense(self.weight).items():
                destination[prefix + name] = part
