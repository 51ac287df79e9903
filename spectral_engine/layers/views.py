"""How the parameters of each kind of module are seen as matrices.

A `View` says which part of a parameter is a matrix, or a batch of them, whose rows are output
features. The registry below maps a module's class to its views; `register_layer` extends it.

| module                      | views of                                                           |
|-----------------------------|--------------------------------------------------------------------|
| Linear                      | weight (out, in)                                                   |
| Conv1d, Conv2d, Conv3d      | weight (out, in x kernel); grouped: a batch, one matrix a group    |
| ConvTranspose1d, 2d, 3d     | the same, though PyTorch stores the input channels first           |
| Embedding, EmbeddingBag     | weight (entries, features), only where `targets` names it          |
| Bilinear                    | weight (out, in1 x in2)                                            |
| RNN, LSTM, GRU, their cells | each matrix of each layer and direction; a view for each gate      |
| MultiheadAttention          | q, k and v apart, packed or not; out_proj is a Linear              |
| Conv1D of transformers      | weight, stored (in, out)                                           |
| classes named "...Experts"  | 3-D parameters (experts, out, in), or (experts, in, out): see      |
|                             | `_stores_inputs_first`; a batch, one matrix an expert              |
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spectral_engine._util.checks import boolean, shown

#: The gates of a recurrent weight in the order of its rows, as PyTorch documents them.
GATES = {
    "LSTM": ("input", "forget", "cell", "output"),
    "GRU": ("reset", "update", "new"),
}
#: Classes of transformers that store (experts, in, out), in versions whose modules do not say so.
_INPUT_FIRST = ("AriaExperts", "GptOssExperts", "Llama4TextExperts", "OpenAIPrivacyFilterExperts")
#: The matrices whose shapes tell: that into the experts, gate and value in one, and that out.
_INTO, _OUT_OF = "gate_up_proj", "down_proj"


def whole(weight: torch.Tensor) -> torch.Tensor:
    """All of a parameter, as it is."""
    return weight


@dataclass(frozen=True)
class View:
    """A part of a parameter that is a matrix, or a batch of matrices; see `register_layer`.

    Args:
        parameter: its name in the module.
        of: from the parameter to the part, (m, ...), or (b, m, ...) if `batch`, with rows m output
            features; the columns need not be flat. It must give the parameter's own memory: by
            slicing, `unflatten`, `transpose` and the like, never by `reshape` or `flatten`. By
            default all of the parameter.
        part: what the part is called if it is not the whole parameter, such as "forget".
        batch: whether it is a batch of b matrices and not one.
        opt_in: what the weight is, such as "an embedding", if it is only pruned where `targets`
            names it.

    Raises:
        TypeError: names the argument, what was expected and what came.

    >>> import torch
    >>> import spectral_engine as se
    >>> upper = se.View("weight", lambda weight: weight[:2], part="upper")
    >>> upper.of(torch.zeros(6, 4)).shape
    torch.Size([2, 4])
    """

    parameter: str
    of: Callable[[torch.Tensor], torch.Tensor] = whole
    part: str = ""
    batch: bool = False
    opt_in: str = ""

    def __post_init__(self) -> None:
        for name in ("parameter", "part", "opt_in"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"{name}: expected a string; got {shown(value)}")
        if not callable(self.of):
            raise TypeError(f"of: expected a function of a parameter; got {shown(self.of)}")
        boolean("batch", self.batch)


Views = Callable[[Any], Iterable[View]]
_REGISTRY: dict[type[nn.Module] | str, Views] = {}


def register_layer(kind: type[nn.Module] | str, views: Views) -> None:
    """Say how the weights of a module class are seen as matrices, by every function here.

    Args:
        kind: the class, which counts for its subclasses too, or a glob over qualified names, such
            as "transformers.*.MixtralExperts", for one that need not be imported. What was
            registered last is asked first; a class goes before globs, and before its own bases.
        views: called with a module of the class; returns its `View`s. None at all leaves it alone.

    Raises:
        TypeError: not a module class or a string, or not a function.

    A layer that holds its three projections as one tensor (3, out, in):

    >>> import torch
    >>> import spectral_engine as se
    >>> class FusedAttention(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.qkv = torch.nn.Parameter(torch.randn(3, 8, 8))
    >>> def views(attention):
    ...     return [
    ...         se.View("qkv", lambda weight, i=i: weight[i], part=part)
    ...         for i, part in enumerate("qkv")
    ...     ]
    >>> se.register_layer(FusedAttention, views)
    >>> [layer.name for layer in se.prune(FusedAttention(), sparsity=0.5).layers]
    ['qkv[q]', 'qkv[k]', 'qkv[v]']
    """
    if not (isinstance(kind, str) or (isinstance(kind, type) and issubclass(kind, nn.Module))):
        raise TypeError(f"kind: expected a torch.nn.Module class or a string; got {kind!r}")
    if not callable(views):
        raise TypeError(f"views: expected a function of the module; got {views!r}")
    _REGISTRY.pop(kind, None)
    _REGISTRY[kind] = views


def views_of(module: nn.Module) -> list[View]:
    """The views of a module's own parameters.

    Args:
        module: of a class that is known or not.

    Returns:
        As its class, or the nearest base that is registered, has them; none if none is.

    Raises:
        TypeError, ValueError: a registered function gave something else than views of parameters.
    """
    find = _registered(type(module))
    if find is None:
        return []
    views = list(find(module))
    for view in views:
        kind = type(module).__name__
        if not isinstance(view, View):
            raise TypeError(f"register_layer: expected views of {kind}; got {view!r}")
        if not _holds(module, view.parameter):
            raise ValueError(
                f"register_layer: expected views of parameters of {kind}; got {view.parameter!r}"
            )
    return views


def _registered(kind: type) -> Views | None:
    for cls in kind.__mro__:
        if cls in _REGISTRY:
            return _REGISTRY[cls]
    for cls in kind.__mro__:
        name = f"{cls.__module__}.{cls.__qualname__}"
        for pattern, views in reversed(_REGISTRY.items()):
            if isinstance(pattern, str) and fnmatchcase(name, pattern):
                return views
    return None


def split_view(view: View, parts: dict[str, int]) -> list[View]:
    """A view of a matrix as several of consecutive rows: name to number of rows."""
    views, start = [], 0
    for name, rows in parts.items():
        part = f"{view.part}.{name}" if view.part else name
        of = partial(_rows, view.of, start, start + rows)
        views.append(View(view.parameter, of, part, opt_in=view.opt_in))
        start += rows
    return views


def _rows(
    of: Callable[[torch.Tensor], torch.Tensor], start: int, stop: int, weight: torch.Tensor
) -> torch.Tensor:
    return of(weight)[start:stop]


def _chunk(index: int, count: int, weight: torch.Tensor) -> torch.Tensor:
    return _groups(count, weight)[index]


def _transposed(weight: torch.Tensor) -> torch.Tensor:
    return weight.transpose(0, 1)


def _transposed_batch(weight: torch.Tensor) -> torch.Tensor:
    return weight.transpose(1, 2)


def _groups(count: int, weight: torch.Tensor) -> torch.Tensor:
    groups: torch.Tensor = weight.unflatten(0, (count, -1))  # type: ignore[no-untyped-call]
    return groups


def _groups_transposed(count: int, weight: torch.Tensor) -> torch.Tensor:
    return _groups(count, weight).transpose(1, 2)


def _weight(module: nn.Module) -> list[View]:
    return [View("weight")]


def _convolution(module: Any) -> list[View]:
    if module.groups == 1:
        return [View("weight")]
    return [View("weight", partial(_groups, module.groups), batch=True)]


def _transposed_convolution(module: Any) -> list[View]:
    if module.groups == 1:
        return [View("weight", _transposed)]
    return [View("weight", partial(_groups_transposed, module.groups), batch=True)]


def _embedding(module: nn.Module) -> list[View]:
    return [View("weight", opt_in="an embedding")]


def _recurrent(gates: tuple[str, ...], module: nn.Module) -> Iterator[View]:
    """weight_ih and weight_hh hold a matrix for each gate; weight_hr, a projection, does not."""
    for name in module._parameters:
        if name.startswith("weight_hr") or (name.startswith("weight") and not gates):
            yield View(name)
        elif name.startswith("weight"):
            for i, gate in enumerate(gates):
                yield View(name, partial(_chunk, i, len(gates)), gate)


def _attention(module: Any) -> Iterator[View]:
    for i, part in enumerate("qkv"):
        if module._qkv_same_embed_dim:
            yield View("in_proj_weight", partial(_chunk, i, 3), part)
        else:
            yield View(f"{part}_proj_weight")


def _stores_inputs_first(module: nn.Module) -> bool:
    """Whether 3-D parameters of an experts module are (experts, in, out).

    Args:
        module: of a class named "...Experts".

    Returns:
        What the module says (`is_transposed`, as transformers sets it); else by its class; else by
        the shapes of `gate_up_proj` and `down_proj`, of which only one reading fits: with h
        features and i between, (i + i, h) and (h, i), or (h, i + i) and (i, h). False where nothing
        tells: (experts, out, in), as most store it; `register_layer` says otherwise.
    """
    told = getattr(module, "is_transposed", None)
    if isinstance(told, bool):
        return told
    if any(cls.__name__ in _INPUT_FIRST for cls in type(module).__mro__):
        return True
    into, out_of = module._parameters.get(_INTO), module._parameters.get(_OUT_OF)
    if into is None or out_of is None or is_lazy(into) or is_lazy(out_of):
        return False
    if into.ndim != 3 or out_of.ndim != 3:
        return False
    return into.shape[1] == out_of.shape[2] and into.shape[2] == 2 * out_of.shape[1]


def _experts(module: nn.Module) -> Iterator[View]:
    of = _transposed_batch if _stores_inputs_first(module) else whole
    for name, parameter in module._parameters.items():
        if parameter is not None and not is_lazy(parameter) and parameter.ndim == 3:
            yield View(name, of, batch=True)


def _input_first(module: nn.Module) -> list[View]:
    return [View("weight", _transposed)]


_KNOWN: list[tuple[Views, tuple[type[nn.Module] | str, ...]]] = [
    (_weight, (nn.Linear, nn.Bilinear)),
    (_convolution, (nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    (_transposed_convolution, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)),
    (_embedding, (nn.Embedding, nn.EmbeddingBag)),
    (partial(_recurrent, ()), (nn.RNN, nn.RNNCell)),
    (partial(_recurrent, GATES["LSTM"]), (nn.LSTM, nn.LSTMCell)),
    (partial(_recurrent, GATES["GRU"]), (nn.GRU, nn.GRUCell)),
    (_attention, (nn.MultiheadAttention,)),
    (_experts, ("*Experts",)),
    (_input_first, ("transformers.pytorch_utils.Conv1D",)),
]
for _views, _kinds in _KNOWN:
    for _kind in _kinds:
        register_layer(_kind, _views)


def _holds(module: nn.Module, name: str) -> bool:
    """Whether a module has a weight of that name; to read a parametrized one would run it."""
    return (
        name in module._parameters
        or name in module._buffers
        or name in vars(module)
        or hasattr(type(module), name)
    )
