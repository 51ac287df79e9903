"""Which rows of a layer's inputs count: not those that a mask hides, and of very many a sample.

A batch of sequences has B x T positions. Those that its attention mask hides, padding most of all,
are no samples of what the layer sees. A layer's inputs are the batch's positions where they have
its shape: (B, T, ...), (T, B, ...) or (B T, ...). Where they have another, every row counts: after
pooling, where a router has sent tokens to experts, and in convolutions, whose windows overlap.

| argument of the model                                    | a position counts where it is       |
|----------------------------------------------------------|-------------------------------------|
| attention_mask, encoder_, decoder_attention_mask (B, T)  | not 0                               |
| src_, tgt_, memory_key_padding_mask, padding_mask (B, T) | False, or 0 where it is added       |
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from spectral_kernels import draws, stream_id
from torch import nn

from spectral_engine.calibration.batches import RefusedError, named_arguments

#: Which positions count: None for those that masks do not hide, "all", or a function of a batch
#: that gives weights (B, T), at least 0, or True and False.
PositionRule = Callable[[Any], torch.Tensor] | Literal["all"] | None

_KEPT = ("attention_mask", "encoder_attention_mask", "decoder_attention_mask")
_HIDDEN = ("src_key_padding_mask", "tgt_key_padding_mask", "key_padding_mask", "padding_mask")
_OF_DECODERS = ("decoder_attention_mask", "tgt_key_padding_mask")
_DECODER_INPUTS = (*_OF_DECODERS, "decoder_input_ids", "decoder_inputs_embeds", "tgt")
_CROSS = ("encoder_attn", "EncDecAttention", "crossattention", "cross_attn", "multihead_attn")
#: u / UNIT is uniform in [0, 1) for the integers u of the stream.
_UNIT = 1 << 24
#: Calls of a layer in a batch whose draws are not those of the next batch.
_MOST_CALLS = 1 << 20


class Positions:
    """The weights of the positions of the batch that is running."""

    def __init__(self, model: nn.Module, rule: PositionRule) -> None:
        self._model, self._rule = model, rule
        self._inputs: torch.Tensor | None = None
        self._outputs: torch.Tensor | None = None
        self._two_sided = False
        self._time_first = any(
            getattr(module, "batch_first", True) is False for module in model.modules()
        )

    def see(self, batch: Any) -> None:
        """Take the masks of a batch, before the model runs over it."""
        self._inputs = self._outputs = None
        self._two_sided = False
        if self._rule == "all":
            return
        if callable(self._rule):
            self._inputs = self._outputs = _weights(self._rule(batch))
            return
        given = named_arguments(self._model, batch)
        self._two_sided = any(given.get(name) is not None for name in _DECODER_INPUTS)
        self._inputs = _first_mask(given, [n for n in _KEPT + _HIDDEN if n not in _OF_DECODERS])
        self._outputs = _first_mask(given, _OF_DECODERS) if self._two_sided else self._inputs

    def of(self, name: str, slot: str, found: torch.Tensor, turned: bool) -> torch.Tensor | None:
        """The weight of each row of a layer's inputs, None if all count alike.

        Args:
            name, slot: of the module, and of what it is given; see `Source`.
            found: (..., n), the layer's inputs.
            turned: whether (T, B, n) is certain.
        """
        weights = self._outputs if self._of_decoder(name, slot) else self._inputs
        shape = found.shape[:-1]
        if weights is None or not shape:
            return None
        first, second = weights.shape
        by_time = turned or (self._time_first and shape[:2] == (second, first))
        if len(shape) > 1 and by_time and shape[:2] == (second, first):
            weights = weights.mT
        elif len(shape) > 1 and shape[:2] == (first, second):
            pass
        elif len(shape) > 1 and shape[:2] == (second, first):
            weights = weights.mT
        elif shape == (first * second,):
            weights = weights.mT if self._time_first else weights
            return weights.reshape(-1).to(found.device)
        else:
            return None
        weights = weights.reshape(*shape[:2], *[1] * (len(shape) - 2))
        return weights.expand(shape).reshape(-1).to(found.device)

    def _of_decoder(self, name: str, slot: str) -> bool:
        if not self._two_sided:
            return False
        if "encoder" in name and "decoder" not in name:
            return False
        last = name.rpartition(".")[2]
        of_memory = slot in ("key", "value") or last[:1] in ("k", "v")
        return not (of_memory and any(word in name for word in _CROSS))


def _first_mask(given: Mapping[str, Any], names: Any) -> torch.Tensor | None:
    for name in names:
        mask = given.get(name)
        if isinstance(mask, torch.Tensor) and mask.ndim == 4 and name in _KEPT:
            mask = _seen_by_any(mask)
        if isinstance(mask, torch.Tensor) and mask.ndim == 2:
            if name in _HIDDEN:
                return (mask == 0).float()
            return (mask != 0).float()
    return None


def _seen_by_any(mask: torch.Tensor) -> torch.Tensor:
    """Which keys (B, T) any query of any head sees, by a mask (B, heads, queries, T).

    One of floats that are nowhere above 0 is added to the scores: 0 lets through.
    """
    added = mask.is_floating_point() and bool((mask <= 0).all())
    return (mask == 0 if added else mask != 0).any(2).any(1)


def _weights(found: Any) -> torch.Tensor:
    """What a function of the user's gives for weights, checked.

    Raises:
        ValueError: no tensor (B, T) of finite numbers of at least 0.
    """
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise RefusedError(f"positions: expected a tensor of shape (B, T); got {what}")
    weights = found.detach().double()
    if not bool(torch.isfinite(weights).all() & (weights >= 0).all()):
        raise RefusedError("positions: expected finite weights of at least 0; got others")
    return weights.float()


class Sample:
    """Which of a layer's rows are taken, if there are more than wanted.

    Of n rows in a row, with s = rows / wanted, one is drawn in each run of s: spread as evenly as
    a stride, without falling into step with the columns of an image. The draws are the stream's,
    of seed 0, the layer's name and the batch, a call after the other, and the same in every run,
    whichever process has the batch.
    """

    def __init__(self, name: str, rows: int, wanted: int | None) -> None:
        self._stride = 1.0 if wanted is None else max(1.0, rows / wanted)
        self._stream = stream_id(f"calibration of {name}")
        self._calls: dict[int, int] = {}

    def of(self, rows: int, batch: int = 0) -> torch.Tensor | None:
        """The numbers of the rows that are taken of a batch's next call, None for all."""
        if self._stride == 1.0:
            return None
        runs = math.ceil(rows / self._stride)
        call = self._calls.get(batch, 0)
        self._calls[batch] = call + 1
        row = batch * _MOST_CALLS + call
        places = draws((1, runs), 0, self._stream, row_offset=row)[0] / _UNIT + np.arange(runs)
        taken = np.unique(np.floor(places * self._stride).astype(np.int64))
        return torch.from_numpy(taken[taken < rows])


def rows_taken(
    weights: torch.Tensor | None,
    rows: int,
    sample: Sample | None,
    device: torch.device,
    batch: int = 0,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The numbers of the rows of a batch's next call that count, None for all, and their weights.

    The weights are None where all count alike.
    """
    index = None
    if weights is not None:
        index = weights.nonzero().flatten()
        if len(index) == rows:
            index = None
    count = rows if index is None else len(index)
    taken = None if sample is None else sample.of(count, batch)
    if taken is not None:
        taken = taken.to(device)
        index = taken if index is None else index[taken]
    if weights is None:
        return index, None
    chosen = weights if index is None else weights[index]
    return index, None if bool((chosen == 1).all()) else chosen
