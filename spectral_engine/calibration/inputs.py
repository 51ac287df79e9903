"""Where the inputs of a layer's matrix can be seen: in a call of its module's forward.

The inputs of a matrix (m, n) are the vectors x of n features that its rows are multiplied with:

| module                           | inputs of its matrices                                      |
|----------------------------------|-------------------------------------------------------------|
| Linear, Conv1D of transformers   | its input, flattened to (N, n)                              |
| Conv1d, 2d, 3d, also transposed  | the windows that the kernel is laid over, by group          |
| Bilinear                         | the outer products of its two inputs                        |
| MultiheadAttention               | q, k, v: its query, key and value                           |
| RNN, LSTM, GRU                   | input matrices of the first layer: its input                |
|                                  | recurrent ones of the last layer: its output a step before  |
| RNNCell, LSTMCell, GRUCell       | its input, and the hidden state                             |
| experts of transformers 5        | the tokens that are sent to each; see `routed/experts.py`   |

Hidden from hooks, and so not calibrated: all else of RNN, LSTM and GRU, whose states between layers
and before a projection never leave one fused call; the out_proj of MultiheadAttention, whose
forward is not called; embeddings, whose inputs are indices; and parameters that a module of an
unknown class uses.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from spectral_engine.calibration.routed.experts import (
    INTO,
    OUT_OF,
    ROUTED,
    apart,
    between,
    by_expert,
    is_routed,
    routed,
)

#: Entries of the unfolded windows that are made at once.
_CHUNK = 1 << 20

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Call(NamedTuple):
    """A call of a module: its arguments, and its output once it is over."""

    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any = None


Find = Callable[[Call], torch.Tensor | None]
Rows = Callable[[torch.Tensor, torch.Tensor | None], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class Inputs:
    """How a matrix's inputs are read off a call of its module.

    slot: which of them, such as "query"; matrices of one module and slot share their inputs
    find: from the call to the tensor that holds them, None if there is none
    rows: from that tensor to parts (N, n), or (b, N, n) for a batch of matrices; of the rows with
        these numbers, or of all
    count: how many rows there are
    after: whether they are only seen once the call is over
    time_first: whether the tensor is (T, B, n) for certain
    paired: whether a row is the same sample in a dense copy of the model
    """

    slot: str
    find: Find
    rows: Rows
    count: Callable[[torch.Tensor], int]
    after: bool = False
    time_first: bool = False
    paired: bool = True


def inputs_of(module: nn.Module, local_name: str, part: str = "") -> Inputs | str:
    """How the inputs of a parameter of `module` are seen, or the reason why they are not."""
    kind = type(module).__name__
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    if isinstance(module, nn.Linear) or fnmatchcase(name, "transformers.pytorch_utils.Conv1D"):
        return Inputs("input", _argument(0, "input", "x"), flat, flat_count)
    if isinstance(module, _CONVOLUTIONS):
        return Inputs("input", _argument(0, "input"), *_windows_of(module))
    if isinstance(module, _TRANSPOSED):
        return Inputs("input", _spread_by(module), *_transposed_windows_of(module))
    if isinstance(module, nn.Bilinear):
        return Inputs("input", _outer, flat, flat_count)
    if isinstance(module, nn.MultiheadAttention):
        which = "qkv".find(part or local_name[0])
        slot = ("query", "key", "value")[which]
        return Inputs(slot, _argument(which, slot), flat, flat_count)
    if isinstance(module, nn.RNNCellBase):
        if local_name == "weight_ih":
            return Inputs("input", _argument(0, "input"), flat, flat_count)
        return Inputs("hidden", _hidden, flat, flat_count)
    if isinstance(module, nn.RNNBase):
        if local_name.startswith("weight_ih_l0"):
            return Inputs("input", _argument(0, "input"), flat, flat_count)
        if local_name.startswith(f"weight_hh_l{module.num_layers - 1}"):
            reverse = local_name.endswith("_reverse")
            slot = "hidden, reverse" if reverse else "hidden"
            return Inputs(slot, _states_of(module, reverse), flat, flat_count, True, True)
        return f"the inputs of {local_name} stay inside {kind}"
    if local_name in (INTO, OUT_OF) and is_routed(module):
        rows = partial(_of_experts, len(getattr(module, local_name)))
        return Inputs(local_name, _routes(module, local_name), rows, len, paired=False)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "the inputs of an embedding are indices"
    return f"it is not known where {kind} has the inputs of {local_name}"


def _argument(place: int, *names: str) -> Find:
    def find(call: Call) -> torch.Tensor | None:
        found = call.args[place] if place < len(call.args) else None
        for name in names:
            found = call.kwargs.get(name) if found is None else found
        if isinstance(found, PackedSequence):
            return found.data
        return found if isinstance(found, torch.Tensor) else None

    return find


def _hidden(call: Call) -> torch.Tensor | None:
    """The hidden state that a recurrent call begins with; where it is left out it is zero."""
    state = call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")
    if isinstance(state, tuple):
        state = state[0]
    return state if isinstance(state, torch.Tensor) else None


def _states_of(module: nn.RNNBase, reverse: bool) -> Find:
    """The states that each step of the last layer, in one direction, starts from.

    That is the output shifted one step (backwards if reverse); the initial state fills the gap.
    """
    place = -1 if reverse or not module.bidirectional else -2
    size = module.proj_size or module.hidden_size

    def find(call: Call) -> torch.Tensor | None:
        output = call.output[0] if isinstance(call.output, tuple) else None
        lengths = None
        if isinstance(output, PackedSequence):
            output, lengths = pad_packed_sequence(output)
        if not isinstance(output, torch.Tensor):
            return None
        if module.batch_first and lengths is None and output.ndim == 3:
            output = output.transpose(0, 1)
        states = output[..., size:] if reverse else output[..., :size]
        given = _hidden(call)
        first = torch.zeros_like(states[0]) if given is None else given[place]
        before = (states[1:], first[None]) if reverse else (first[None], states[:-1])
        starts = torch.cat(before)
        if lengths is None:
            return starts
        if reverse:  # each sequence begins at its own end
            starts[lengths - 1, torch.arange(len(lengths))] = first
        return starts[torch.arange(len(starts))[:, None] < lengths]

    return find


def _routes(module: Any, local_name: str) -> Find:
    """Rows of all experts with their numbers; those behind the gate for the second matrix."""
    own = apart(module)

    def find(call: Call) -> torch.Tensor | None:
        hidden, experts = (_argument(i, name)(call) for i, name in enumerate(ROUTED))
        if hidden is None or experts is None:
            return None
        into = module._parameters[INTO]
        rows = routed(hidden.flatten(0, -2), experts.flatten(0, -2), into.shape[0])
        return rows if local_name == INTO else between(own, rows)

    return find


def _of_experts(
    experts: int, rows: torch.Tensor, index: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    yield from by_expert(rows if index is None else rows[index], experts)


def _outer(call: Call) -> torch.Tensor | None:
    first, second = (_argument(i, f"input{i + 1}")(call) for i in range(2))
    if first is None or second is None:
        return None
    return (first[..., :, None] * second[..., None, :]).flatten(-2)


def flat(tensor: torch.Tensor, index: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
    """(..., n) as (N, n)."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    yield rows if index is None else rows[index]


def flat_count(tensor: torch.Tensor) -> int:
    """N."""
    return math.prod(tensor.shape[:-1])


def _windows_of(module: Any) -> tuple[Rows, Callable[[torch.Tensor], int]]:
    def rows(x: torch.Tensor, index: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        x = _batched(x, module)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        if any(padding):
            x = functional.pad(x, padding, mode=mode)
        yield from _windows(x, module, module.stride, index, flip=False)

    def count(x: torch.Tensor) -> int:
        x = _batched(x, module)
        added = [a + b for a, b in zip(padding[::2], padding[1::2], strict=True)][::-1]
        sizes = [n + more for n, more in zip(x.shape[2:], added, strict=True)]
        return x.shape[0] * _places(sizes, module, module.stride)

    padding = module._reversed_padding_repeated_twice
    return rows, count


def _transposed_windows_of(module: Any) -> tuple[Rows, Callable[[torch.Tensor], int]]:
    """A transposed convolution is one of its input, spread by the stride, with a turned kernel."""
    ones = (1,) * len(module.kernel_size)

    def rows(x: torch.Tensor, index: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        yield from _windows(x, module, ones, index, flip=True)

    def count(x: torch.Tensor) -> int:
        return x.shape[0] * _places(x.shape[2:], module, ones)

    return rows, count


def _spread_by(module: Any) -> Find:
    """The input of a transposed convolution, spread by its stride and padded for its output."""

    def find(call: Call) -> torch.Tensor | None:
        x = _argument(0, "input")(call)
        if x is None:
            return None
        asked = call.args[1] if len(call.args) > 1 else call.kwargs.get("output_size")
        added = module._output_padding(
            x, None if asked is None else list(asked), module.stride, module.padding,
            module.kernel_size, len(module.kernel_size), module.dilation,
        )  # fmt: skip
        x = _batched(x, module)
        sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], module.stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        every: tuple[slice, ...] = tuple(slice(None, None, step) for step in module.stride)
        spread[(slice(None), slice(None), *every)] = x
        padding = []
        for i in reversed(range(len(sizes))):
            reach = module.dilation[i] * (module.kernel_size[i] - 1) - module.padding[i]
            padding += [reach, reach + added[i]]
        return functional.pad(spread, padding)

    return find


def _batched(x: torch.Tensor, module: Any) -> torch.Tensor:
    """(samples, channels, ...), also of one sample alone."""
    return x if x.ndim == len(module.kernel_size) + 2 else x[None]


def _places(sizes: Sequence[int], module: Any, stride: Sequence[int]) -> int:
    """How many windows an image of these padded sizes has."""
    reach = (d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return math.prod((n - r - 1) // s + 1 for n, r, s in zip(sizes, reach, stride, strict=True))


def _windows(
    x: torch.Tensor, module: Any, stride: Sequence[int], index: torch.Tensor | None, flip: bool
) -> Iterator[torch.Tensor]:
    """Windows (b, N, n) or (N, n) of padded images (samples, channels, ...), in parts.

    All of them, or those with the numbers `index`, counted sample by sample and place by place.
    """
    kernel, dimensions = module.kernel_size, len(module.kernel_size)
    for i in range(dimensions):
        step = module.dilation[i]
        x = x.unfold(2 + i, step * (kernel[i] - 1) + 1, stride[i])[..., ::step]
    places = tuple(range(2, 2 + dimensions))
    taps = tuple(range(2 + dimensions, 2 + 2 * dimensions))
    x = x.permute(0, *places, 1, *taps)  # samples, places, channels, taps: nothing copied yet

    def shaped(part: torch.Tensor, leading: int) -> torch.Tensor:
        windows = part.flip(tuple(range(leading + 1, part.ndim))) if flip else part
        count = part.shape[:leading].numel()
        if module.groups == 1:
            return windows.reshape(count, -1)
        return windows.reshape(count, module.groups, -1).transpose(0, 1)

    if index is not None:
        length = math.prod(x.shape[1 + dimensions :])
        for some in torch.split(index, max(1, _CHUNK // length)):
            yield shaped(x[torch.unravel_index(some, x.shape[: 1 + dimensions])], 1)
        return
    for sample in x:
        line = sample[0].numel()
        for part in sample.split(max(1, _CHUNK // line)):
            yield shaped(part, dimensions)
