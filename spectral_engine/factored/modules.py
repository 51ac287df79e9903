"""Linear layers and convolutions whose weight is S + L R: a sparse matrix and two thin factors.

S is the parameter `weight`, so that masks, pruning and compressing see it as any other; L is `left`
(out, rank), R is `right` (rank, in), both trained as S is. L R is never formed: an input goes
through R, then through L, which are rank (in + out) products where S has as many as it has entries.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

_CALLS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class LowRankLayer(nn.Module):
    """A layer with two factors; the base of those here."""

    weight: torch.Tensor
    left: nn.Parameter
    right: nn.Parameter

    @property
    def rank(self) -> int:
        """Of L R."""
        return self.right.shape[0]

    def merged(self) -> torch.Tensor:
        """S + L R, shaped as the weight and in its dtype; as a rule it has no zeros."""
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        product = (self.left.detach().to(wide) @ self.right.detach().to(wide)).view(
            self.weight.shape
        )
        return (self.weight.detach().to(wide) + product).to(self.weight.dtype)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{super().extra_repr()}, rank={self.rank}"


class LowRankLinear(LowRankLayer, nn.Linear):
    """y = x S^T + (x R^T) L^T + bias, of a sparse S (out, in), L (out, rank) and R (rank, in).

    `prune` with `LowRank` makes such layers of `torch.nn.Linear`; `merge_low_rank` makes dense ones
    of them again.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    >>> recipe = se.Recipe(low_rank=se.LowRank(2))
    >>> report = se.prune(model, recipe, 0.75)
    >>> model[0]
    LowRankLinear(in_features=64, out_features=32, bias=True, rank=2)
    >>> int((model[0].weight != 0).sum()) + 2 * (64 + 32) == 64 * 32 // 4
    True
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., out) of (..., in)."""
        inner = functional.linear(x, self.right)
        return functional.linear(x, self.weight, self.bias) + functional.linear(inner, self.left)


class _LowRankConv(LowRankLayer):
    """A convolution of one group: R as a convolution to `rank` channels, L as one of size 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, out, ...) of (b, in, ...), or both without b."""
        own: Any = self
        shape = self.weight.shape
        inner = own._conv_forward(x, self.right.view(-1, *shape[1:]), None)
        y: torch.Tensor = own._conv_forward(x, self.weight, own.bias)
        return y + low_rank_conv(inner, self.left, len(shape) - 2)


def low_rank_conv(inner: torch.Tensor, left: torch.Tensor, dims: int) -> torch.Tensor:
    """L at each place of (b, rank, ...), or without b, with `dims` dimensions of place."""
    return _CALLS[dims](inner, left.view(*left.shape, *(1 for _ in range(dims))))


class LowRankConv1d(_LowRankConv, nn.Conv1d):
    """A `torch.nn.Conv1d` of S + L R; see `LowRankLinear`."""


class LowRankConv2d(_LowRankConv, nn.Conv2d):
    """A `torch.nn.Conv2d` of S + L R; see `LowRankLinear`."""


class LowRankConv3d(_LowRankConv, nn.Conv3d):
    """A `torch.nn.Conv3d` of S + L R; see `LowRankLinear`."""


#: What a module of exactly this class becomes: a subclass may use its weight itself.
LOW_RANK: dict[type[nn.Module], type[LowRankLayer]] = {
    nn.Linear: LowRankLinear,
    nn.Conv1d: LowRankConv1d,
    nn.Conv2d: LowRankConv2d,
    nn.Conv3d: LowRankConv3d,
}
DENSE = {low_rank: dense for dense, low_rank in LOW_RANK.items()}
