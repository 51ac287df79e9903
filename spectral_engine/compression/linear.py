"""A linear layer that multiplies straight from values and bits, and an embedding beside it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from spectral_engine.compression import operators
from spectral_engine.compression.weights import SparseWeight, parts_of_dense


class SparseLinear(SparseWeight):
    """y = x S^T + bias of a pruned weight S (out, in), of which values and bits are held.

    The weight is frozen: gradients reach x and the bias only. Sums are float32 (float64 where S
    is), y has x's dtype, under autocast that of autocast. An entry that is pruned is not
    multiplied, so that an infinity in x reaches only the rows that have an entry there.

    The state dict holds the parts that docs/format.md describes. `load_state_dict` also takes the
    other forms of that page, and a dense "weight" of the same shape; the number of values may
    change.

    Args:
        parts: of the weight, in one of the forms.
        weight_shape: (out, in).
        bias: (out,), or None.

    >>> import torch
    >>> import spectral_engine as se
    >>> layer = torch.nn.Linear(64, 32)
    >>> _ = se.prune(layer, "magnitude", 0.75)
    >>> sparse = se.SparseLinear.from_dense(layer)
    >>> x = torch.randn(4, 64)
    >>> torch.allclose(sparse(x), layer(x), atol=1e-5)
    True
    >>> sorted(sparse.state_dict())
    ['bias', 'bitmask', 'compressed', 'row_offsets', 'shape']
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        parts: Mapping[str, torch.Tensor],
        weight_shape: tuple[int, ...],
        bias: nn.Parameter | None = None,
    ) -> None:
        super().__init__(parts, weight_shape)
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = weight_shape[0], self.columns

    @classmethod
    def from_dense(cls, layer: nn.Linear) -> "SparseLinear":
        """Of a linear layer; the bias is the same parameter.

        Raises:
            TypeError: no `torch.nn.Linear`, or a dtype that is not packed.
        """
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layer: expected a torch.nn.Linear; got {type(layer).__name__}")
        return cls(parts_of_dense(layer.weight), tuple(layer.weight.shape), layer.bias)

    def to_dense(self) -> nn.Linear:
        """A linear layer of the same weight, which can be trained, and the same bias."""
        weight, has_bias = self.weight, self.bias is not None
        layer = nn.Linear(self.in_features, self.out_features, has_bias, "meta", weight.dtype)
        layer.weight = nn.Parameter(weight)
        layer.bias = self.bias  # type: ignore[assignment]
        return layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        # The first condition comes first: a compiler must not look at what is prepared.
        if (
            torch.compiler.is_compiling()
            or (held := self.prepared) is None
            or (x.requires_grad and torch.is_grad_enabled())
            or torch.is_autocast_enabled(x.device.type)
            or not held.unchanged(self._buffers)
        ):
            y = self._product(x)
        else:
            y = held.operator(x)
        if self._parameters.get("bias", y) is not None:  # faster than `self.bias` where it is None
            # The product is a tensor of its own, but autograd may look at it again.
            y = y + self.bias.to(y.dtype)  # type: ignore[union-attr]
        return y

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
            out: torch.Tensor = operators.sparse_linear(x, *self.arrays, self.rows, self.columns)
            return out
        # The way through torch's dispatcher takes longer than the product of a small matrix.
        y: torch.Tensor = self._prepared()(x)
        return y

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, sparsity={self.sparsity:.4f}"
        )


class SparseEmbedding(SparseWeight):
    """An embedding that makes only the rows dense that are asked for.

    Args:
        parts: of the weight, in one of the forms.
        weight_shape: (entries, features).
        padding_idx: as `torch.nn.Embedding` has it; kept for `to_dense`.

    >>> import torch
    >>> import spectral_engine as se
    >>> layer = torch.nn.Embedding.from_pretrained(torch.eye(16))
    >>> se.SparseEmbedding.from_dense(layer)(torch.tensor([3])).argmax().item()
    3
    """

    def __init__(
        self,
        parts: Mapping[str, torch.Tensor],
        weight_shape: tuple[int, ...],
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(parts, weight_shape)
        self.num_embeddings, self.embedding_dim = weight_shape[0], self.columns
        self.padding_idx = padding_idx

    @classmethod
    def from_dense(cls, layer: nn.Embedding) -> "SparseEmbedding":
        """Of an embedding.

        Raises:
            TypeError: no `torch.nn.Embedding`. ValueError: one that renormalises its rows.
        """
        if not isinstance(layer, nn.Embedding):
            raise TypeError(f"layer: expected a torch.nn.Embedding; got {type(layer).__name__}")
        if layer.max_norm is not None:
            raise ValueError("layer: expected an embedding without max_norm, which changes it")
        return cls(parts_of_dense(layer.weight), tuple(layer.weight.shape), layer.padding_idx)

    def to_dense(self) -> nn.Embedding:
        """An embedding of the same weight, which can be trained."""
        weight: Any = self.weight
        return nn.Embedding(
            self.num_embeddings, self.embedding_dim, self.padding_idx, _weight=weight
        )

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows (..., features) of integer indices (...)."""
        found: torch.Tensor = operators.sparse_rows(indices, *self.arrays, self.rows, self.columns)
        return found

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{self.num_embeddings}, {self.embedding_dim}, sparsity={self.sparsity:.4f}"
