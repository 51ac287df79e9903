"""Tables of embeddings that stay in the files: a batch reads the rows of its own tokens.

A table can take more than a block, and a batch uses few of its rows. Looked up are plain embeddings
that are not pruned; any other is loaded whole, as a block is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from spectral_engine.calibration.forward import forward_replaced
from spectral_engine.streaming.files.weights import FileWeights
from spectral_engine.streaming.pieces import Piece, loaded


def is_table(piece: Piece, weights: FileWeights) -> bool:
    """Whether a piece is an embedding that gives its rows as they are, and its file gives rows."""
    module = piece.module
    return (
        type(module) is nn.Embedding
        and module.max_norm is None  # or a lookup changes the table
        and weights.rows(f"{piece.name}.weight", []) is not None
    )


def tables_of(pieces: Sequence[Piece], weights: FileWeights) -> list[Piece]:
    """Those of some pieces that `looked_up` takes."""
    return [piece for piece in pieces if is_table(piece, weights)]


@contextmanager
def looked_up(tables: Sequence[Piece], weights: FileWeights) -> Iterator[None]:
    """These embeddings read the rows that they are called for while the block runs.

    Args:
        tables: for each of which `is_table` holds.
        weights: of the files.
    """
    with ExitStack() as stack:
        for piece in tables:
            forward = _lookup(piece, piece.module.forward, weights)
            stack.enter_context(forward_replaced(piece.module, forward))
        yield


def _lookup(piece: Piece, whole: Callable[..., Any], weights: FileWeights) -> Callable[..., Any]:
    name = f"{piece.name}.weight"
    length = weights.shape(name)[0]

    def forward(*args: Any, **kwargs: Any) -> Any:
        ids = args[0] if len(args) == 1 and not kwargs else None
        if _are_rows(ids, length):
            used, places = torch.unique(ids, return_inverse=True)
            rows = weights.rows(name, used.tolist())
            if rows is not None:
                return rows[places]
        # Anything else is for the embedding itself to take or to refuse.
        with loaded(piece, weights.read([name])):
            return whole(*args, **kwargs)

    return forward


def _are_rows(ids: Any, length: int) -> bool:
    return (
        isinstance(ids, torch.Tensor)
        and ids.dtype in (torch.int64, torch.int32)
        and ids.numel() > 0
        and int(ids.min()) >= 0
        and int(ids.max()) < length
    )
