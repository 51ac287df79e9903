"""Sparse modules with two thin factors beside the values and bits."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from spectral_engine.compression.convolution import SparseConv
from spectral_engine.compression.linear import SparseLinear
from spectral_engine.compression.weights import parts_of_dense
from spectral_engine.factored.model import hold_factors
from spectral_engine.factored.modules import (
    DENSE,
    LowRankLayer,
    LowRankLinear,
    low_rank_conv,
)


class SparseLowRankLinear(SparseLinear):
    """y = x S^T + (x R^T) L^T + bias, with S as values and bits; see `SparseLinear`.

    S is frozen; gradients reach x, the bias, and the factors `left` and `right`, which the state
    dict holds beside the parts of S (docs/format.md).

    Args:
        parts: of S, in one of the forms.
        layer: a `LowRankLinear`; its weight is not kept, its factors and bias are.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Sequential(torch.nn.Linear(128, 128))
    >>> _ = se.prune(model, se.Recipe(low_rank=se.LowRank(4)), 0.75)
    >>> x = torch.randn(4, 128)
    >>> y, report = model(x), se.compress(model)
    >>> model[0]
    SparseLowRankLinear(in_features=128, out_features=128, bias=True, sparsity=0.8125, rank=4)
    >>> torch.allclose(model(x), y, atol=1e-5)
    True
    """

    left: nn.Parameter
    right: nn.Parameter

    def __init__(self, parts: Mapping[str, torch.Tensor], layer: Any) -> None:
        super().__init__(parts, tuple(layer.weight.shape), layer.bias)
        self.left, self.right = layer.left, layer.right

    @classmethod
    def from_dense(cls, layer: nn.Linear) -> "SparseLowRankLinear":
        """Of a layer with factors, which are the same parameters, as is the bias.

        Raises:
            TypeError: no `LowRankLinear`, or a dtype that is not packed.
        """
        if not isinstance(layer, LowRankLinear):
            raise TypeError(f"layer: expected a LowRankLinear; got {type(layer).__name__}")
        return cls(parts_of_dense(layer.weight), layer)

    def to_dense(self) -> nn.Linear:
        """A `LowRankLinear` of the same S, which can be trained, and the same factors and bias."""
        layer = super().to_dense()
        hold_factors(layer, self.left, self.right)
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., out) of (..., in)."""
        y = super().forward(x)
        return y + functional.linear(functional.linear(x, self.right), self.left).to(y.dtype)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{super().extra_repr()}, rank={self.right.shape[0]}"


class SparseLowRankConv(SparseConv):
    """A convolution of S as values and bits beside two factors; see `SparseLowRankLinear`.

    Args:
        parts: of S, in one of the forms.
        layer: a `LowRankConv1d`, `LowRankConv2d` or `LowRankConv3d`.
    """

    left: nn.Parameter
    right: nn.Parameter

    def __init__(self, parts: Mapping[str, torch.Tensor], layer: Any) -> None:
        super().__init__(parts, layer)
        plain: Any = DENSE[type(layer)]
        self.kind = plain
        self.left, self.right = layer.left, layer.right

    @classmethod
    def from_dense(cls, layer: Any) -> "SparseLowRankConv":
        """Of a convolution with factors, which are the same parameters, as is the bias.

        Raises:
            TypeError: no `LowRankConv1d`, `LowRankConv2d` or `LowRankConv3d`.
        """
        if not isinstance(layer, LowRankLayer) or isinstance(layer, LowRankLinear):
            raise TypeError(f"layer: expected a LowRankConv2d; got {type(layer).__name__}")
        return cls(parts_of_dense(layer.weight), layer)

    def to_dense(self) -> Any:
        """A convolution with factors, which can be trained, of the same S, factors and bias."""
        layer = super().to_dense()
        hold_factors(layer, self.left, self.right)
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, out, ...) of (b, in, ...), or both without b."""
        y = super().forward(x)
        inner = self._dense_call(x, self.right.view(-1, *self.weight_shape[1:]), None)
        return y + low_rank_conv(inner, self.left, len(self.weight_shape) - 2).to(y.dtype)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{super().extra_repr()}, rank={self.right.shape[0]}"


#: Which sparse module takes the place of one of exactly this class.
SPARSE_LOW_RANK: dict[type[nn.Module], Any] = {
    low_rank: SparseLowRankLinear if dense is nn.Linear else SparseLowRankConv
    for low_rank, dense in DENSE.items()
}
