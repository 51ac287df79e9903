"""A convolution whose weight is held as values and bits.

One of kernel size 1 is a product with a matrix at each place, and is computed as such. For others
the weight is made dense for the call: a product with the unfolded input would move each input as
many times as the kernel has places, while the dense weight is small beside what a convolution
computes with it. What is saved is memory, not time.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from spectral_engine.compression.linear import SparseLinear
from spectral_engine.compression.weights import parts_of_dense

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CALLS = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d, nn.Conv3d: functional.conv3d}


class SparseConv(SparseLinear):
    """A convolution of one, two or three dimensions; see `SparseLinear` for what it holds.

    Args:
        parts: of the weight, in one of the forms.
        layer: the convolution; its weight is not kept.

    >>> import torch
    >>> import spectral_engine as se
    >>> layer = torch.nn.Conv2d(16, 8, 1)
    >>> _ = se.prune(layer, "magnitude", 0.75)
    >>> x = torch.randn(2, 16, 5, 5)
    >>> torch.allclose(se.SparseConv.from_dense(layer)(x), layer(x), atol=1e-5)
    True
    """

    def __init__(self, parts: Mapping[str, torch.Tensor], layer: _Convolution) -> None:
        bias: Any = layer.bias
        super().__init__(parts, tuple(layer.weight.shape), bias)
        self.kind = type(layer)
        self.settings = {
            name: copy.copy(getattr(layer, name))
            for name in (
                "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
                "groups", "padding_mode",
            )
        }  # fmt: skip
        self.around: list[int] = list(layer._reversed_padding_repeated_twice)
        unpadded = not isinstance(layer.padding, str) and not any(layer.padding)
        self.pointwise = unpadded and layer.groups == 1 and set(layer.kernel_size) == {1}

    @classmethod
    def from_dense(cls, layer: Any) -> "SparseConv":
        """Of a convolution; the bias is the same parameter.

        Raises:
            TypeError: no `torch.nn.Conv1d`, `Conv2d` or `Conv3d`.
        """
        if not isinstance(layer, _Convolution):
            raise TypeError(f"layer: expected a convolution; got {type(layer).__name__}")
        return cls(parts_of_dense(layer.weight), layer)

    def to_dense(self) -> Any:
        """A convolution of the same weight, which can be trained, and the same bias."""
        weight = self.weight
        layer = self.kind(
            **self.settings, bias=self.bias is not None, device="meta", dtype=weight.dtype
        )
        layer.weight = nn.Parameter(weight)
        layer.bias = self.bias
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, out, ...) of (b, in, ...), or both without b."""
        if not self.pointwise:
            return self._dense_call(x, self.weight, self.bias)
        dims = len(self.settings["stride"])
        for dim, step in enumerate(self.settings["stride"], -dims):
            if step != 1:
                wanted = torch.arange(0, x.shape[dim], step, device=x.device)
                x = x.index_select(dim, wanted)
        channels = x.ndim - dims - 1
        return super().forward(x.movedim(channels, -1)).movedim(-1, channels)

    def _dense_call(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        padding = self.settings["padding"]
        if self.settings["padding_mode"] != "zeros":
            x = functional.pad(x, self.around, mode=self.settings["padding_mode"])
            padding = 0
        call: Any = _CALLS[self.kind]
        stride = self.settings["stride"]
        dilation, groups = self.settings["dilation"], self.settings["groups"]
        y: torch.Tensor = call(x, weight, bias, stride, padding, dilation, groups)
        return y

    def extra_repr(self) -> str:
        """What `print` shows."""
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{settings}, sparsity={self.sparsity:.4f}"
