"""Which weights of a model are pruned, or have spectra, and why the others are not or have none."""

from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from spectral_kernels import check_weight
from torch import nn
from torch.nn.parameter import is_lazy

from spectral_engine.layers.selector import Selector, matches
from spectral_engine.layers.views import View, split_view, views_of

#: The kernels score in float32.
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Layer:
    """A weight as a matrix or a batch of matrices: one row of a report, one stream.

    name: of the parameter, with the part in brackets where it is seen as several:
        "lstm.weight_ih_l0[forget]"
    module, local_name: whose parameter it is, and what it is called there
    view: which part of it, seen how
    shared_with: the other names of the same memory, and `owners` all modules that hold it
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    local_name: str
    view: View
    shared_with: tuple[str, ...] = ()
    owners: tuple[tuple[nn.Module, str], ...] = field(default=(), repr=False)

    @property
    def weight(self) -> torch.Tensor:
        """The parameter as it is stored, or the part of it, detached."""
        weight = self.parameter.detach()
        return self.entries(weight) if self.view.part else weight

    def entries(self, like: torch.Tensor) -> torch.Tensor:
        """The layer's own entries of a tensor shaped as its parameter; a view of its memory."""
        return self.view.of(like)

    def matrices(self) -> torch.Tensor:
        """The weight as a matrix (m, n), or a batch (b, m, n); rows are output features.

        Detached, and shares the parameter's memory where its layout allows.
        """
        return self.as_matrices(self.parameter.detach())

    def as_matrices(self, like: torch.Tensor) -> torch.Tensor:
        """The layer's part of a tensor shaped as its parameter, shaped as `matrices()`."""
        return self.entries(like).flatten(2 if self.view.batch else 1)

    def write(self, values: torch.Tensor) -> None:
        """Set the parameter's entries in place to `values`, shaped as `matrices()`."""
        entries = self.entries(self.parameter.detach())
        entries.copy_(values.reshape(entries.shape))


@dataclass(frozen=True)
class Skipped:
    """A parameter with two or more dimensions, or a part of it, that is left alone."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Name:
    """One of the names of a weight: whose it is, and how it is seen there."""

    full: str
    module: nn.Module
    prefix: str
    local: str
    views: list[View]

    @property
    def rank(self) -> int:
        """0 if pruned by default, 1 if only when asked for, 2 if not seen as a matrix."""
        return min((bool(view.opt_in) for view in self.views), default=2)

    def of(self, view: View) -> str:
        return f"{self.full}[{view.part}]" if view.part else self.full


#: A module's own weights by local name; None for one that is not there.
Weights = Callable[[nn.Module], Iterable[tuple[str, nn.Parameter | None]]]


def find_layers(
    model: nn.Module,
    selector: Selector,
    split: Any = None,
    *,
    every: bool = False,
    weights: Weights = lambda module: module._parameters.items(),
) -> tuple[list[Layer], list[Skipped]]:
    """The layers of a model to prune, each shared weight once, and what is left alone.

    A weight is shared if it is one parameter under several names, as through a module that is
    used twice, or if several parameters are the same memory. It goes by the first of its names
    under which it is pruned by default, if there is one.

    Args:
        every: also what is only pruned when asked for, and as (shape[0], -1) what no view sees;
            names are the same with and without.
        weights: what a module holds itself; its parameters.

    Raises:
        TypeError, ValueError: `split` (see `prune`), or a registered view, does not fit.
    """
    splits = _Splits(split)
    parameters: dict[Hashable, nn.Parameter] = {}
    shared: dict[Hashable, list[_Name]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        views = views_of(module)
        for local, parameter in weights(module):
            own = [view for view in views if view.parameter == local]
            if parameter is None or not (own or _has_matrix(parameter)):
                continue
            full = f"{prefix}.{local}" if prefix else local
            own = splits.apply(own, parameter, full, prefix)
            key = memory_of(parameter)
            parameters.setdefault(key, parameter)
            shared.setdefault(key, []).append(_Name(full, module, prefix, local, own))
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    for key, names in shared.items():
        names.sort(key=lambda name: name.rank)
        if every and not names[0].views:
            names[0].views.append(View(names[0].local))
        found, left = _select(parameters[key], names, selector, every)
        layers += found
        skipped += left
    selector.unmatched += splits.unmatched
    return layers, skipped


def layers_to_prune(
    model: nn.Module, selector: Selector, split: Any = None
) -> tuple[list[Layer], list[Skipped]]:
    """`find_layers`, of which there must be one.

    Raises:
        TypeError, ValueError: as `find_layers` does, for what is no model, and where none is left.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
    layers, skipped = find_layers(model, selector, split)
    if not layers:
        raise ValueError(
            f"targets: no prunable weight is left with targets={selector.targets}, "
            f"ignore={selector.ignore}; expected a class name, a glob or 're:...' that matches a "
            "weight of a known layer"
        )
    return layers, skipped


def _select(
    parameter: nn.Parameter, names: list[_Name], selector: Selector, every: bool
) -> tuple[list[Layer], list[Skipped]]:
    """The views of one weight that are pruned, and those that are not."""
    first, *others = names
    called = [name for one in names for name in (one.full, one.prefix)]
    classes = [cls.__name__ for one in names for cls in type(one.module).__mro__[:-1]]
    owners = tuple({(id(one.module), one.local): (one.module, one.local) for one in names}.values())
    if not first.views:
        selector.reason_against(called, classes)  # so that a pattern for it counts as matched
        kind = type(first.module).__name__
        return [], [Skipped(first.full, f"{kind}.{first.local} is not seen as a matrix")]
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    for view in first.views:
        aliases = [one.of(view) for one in others]
        reason = selector.reason_against([*called, first.of(view), *aliases], classes)
        if view.opt_in and selector.targets is None and not every:
            reason = reason or f"{view.opt_in}; name it in targets to prune it"
        if reason is not None:
            skipped.append(Skipped(first.of(view), reason))
            continue
        _check(view, parameter, first.of(view))
        layers.append(
            Layer(
                first.of(view), parameter, first.module, first.local, view, tuple(aliases), owners
            )
        )
    if not layers and len({one.reason for one in skipped}) == 1:
        skipped = [Skipped(first.full, skipped[0].reason)]
    return layers, skipped


def _check(view: View, parameter: nn.Parameter, name: str) -> None:
    """Refuse a view that is no matrix, or no part of the parameter's memory."""
    if is_lazy(parameter):
        return
    weight = parameter.detach()
    try:
        entries = view.of(weight)
    except (RuntimeError, IndexError) as error:
        raise ValueError(
            f"register_layer: {name} of shape {tuple(weight.shape)}: {error}"
        ) from error
    least = 3 if view.batch else 2
    if entries.ndim < least:
        raise ValueError(
            f"register_layer: expected {least} dimensions or more of {name}; "
            f"got shape {tuple(entries.shape)}"
        )
    if not parameter.is_meta and (
        entries.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
    ):
        raise ValueError(
            f"register_layer: expected a view of the memory of {name}, by slicing, unflatten or "
            "transpose; got a copy"
        )


@dataclass
class _Splits:
    """The argument `split`: which weights are several matrices, one above the other."""

    given: Any
    unmatched: list[str] = field(init=False)

    def __post_init__(self) -> None:
        given = {} if self.given is None else self.given
        if not isinstance(given, Mapping) or not all(map(_is_parts, given.values())):
            raise TypeError(
                "split: expected a dictionary from a pattern to the names of equal parts, or from "
                f"name to number of rows; got {self.given!r}"
            )
        self.given = given
        self.unmatched = [f"split {pattern!r}" for pattern in given]

    def apply(
        self, views: list[View], parameter: nn.Parameter, full: str, prefix: str
    ) -> list[View]:
        """The views, where a pattern matches each one split into its parts."""
        for pattern, parts in self.given.items():
            if not views or not matches(pattern, [full, prefix]):
                continue
            label = f"split {pattern!r}"
            self.unmatched = [other for other in self.unmatched if other != label]
            return [part for view in views for part in _parts(view, parts, parameter, full)]
        return views


def _is_parts(parts: Any) -> bool:
    if isinstance(parts, Mapping):
        names, sizes = list(parts), list(parts.values())
        sized = all(type(rows) is int and rows > 0 for rows in sizes)
    else:
        names, sized = parts, isinstance(parts, Sequence) and len(set(parts)) == len(parts)
    return sized and len(names) > 0 and all(isinstance(name, str) for name in names)


def _parts(view: View, parts: Any, parameter: nn.Parameter, full: str) -> list[View]:
    if is_lazy(parameter):
        return [view]  # refused by `require_ready`
    if view.batch:
        raise ValueError(f"split: expected one matrix; {full} is a batch of them")
    rows = view.of(parameter.detach()).shape[0]
    sizes = dict(parts) if isinstance(parts, Mapping) else dict.fromkeys(parts, rows // len(parts))
    if sum(sizes.values()) != rows:
        raise ValueError(
            f"split: expected parts that make up the {rows} rows of {full}; got {parts!r}"
        )
    return split_view(view, sizes)


def _has_matrix(parameter: nn.Parameter) -> bool:
    return not is_lazy(parameter) and parameter.ndim >= 2


def memory_of(parameter: torch.Tensor) -> Hashable:
    """Equal for two parameters that are the same entries of the same memory."""
    if is_lazy(parameter) or parameter.is_meta or parameter.data_ptr() == 0:
        return id(parameter)
    place = (parameter.device, parameter.data_ptr(), parameter.dtype)
    return (*place, tuple(parameter.shape), parameter.stride())


def require_ready(layers: Sequence[Layer], masked: Container[int] = ()) -> None:
    """Refuse what cannot be pruned, before anything is changed.

    Args:
        masked: ids of parameters whose zeros are known to be of an earlier pruning.

    Raises:
        TypeError: a dtype or a device that has no kernels.
        ValueError: a weight not initialised, on the meta device, empty, all zeros, or with entries
            that are not finite in float32, in which they are scored.
    """
    for layer in layers:
        weight = layer.parameter
        if is_lazy(weight):
            raise ValueError(
                f"model: {layer.name} has no shape yet; run the model once, so that lazy layers "
                "are initialised"
            )
        if weight.is_meta:
            raise ValueError(f"model: {layer.name} is on the meta device; load its weights first")
        entries = layer.entries(weight.detach())
        check_weight(entries, f"model: {layer.name}")
        low, high = torch.aminmax(entries)
        if not (bool(low >= -LARGEST) and bool(high <= LARGEST)):
            raise ValueError(
                f"model: {layer.name} holds NaN, infinity or entries too large for float32"
            )
        if bool(low == high) and bool(low == 0) and id(weight) not in masked:
            raise ValueError(
                f"model: {layer.name} is all zeros, so that no entry ranks above another; "
                "train it first or name it in ignore"
            )
