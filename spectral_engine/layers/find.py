"""Which weights of a model are pruned, or have spectra, and why the others are not or have none."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spectral_engine.distributed.shards import (
    gathered,
    here,
    is_sharded,
    outline,
    own_part,
    settle,
)
from spectral_engine.layers.adapters import adapters_in, reason_against_adapter
from spectral_engine.layers.names import named_modules, parameter_name
from spectral_engine.layers.parts import Splits
from spectral_engine.layers.selector import Chooser
from spectral_engine.layers.storage import axes, memory_of, obstacle
from spectral_engine.layers.unseen import FLAT, is_sharded_flat, reason_not_seen, weights_held_flat
from spectral_engine.layers.views import View, views_of


@dataclass(frozen=True)
class Layer:
    """A weight as a matrix or a batch of matrices: one row of a report, one stream.

    name: of the parameter, with the part in brackets where it is seen as several:
        "lstm.weight_ih_l0[forget]"
    module, local_name: whose parameter it is, and what it is called there
    view: which part of it, seen how
    shared_with: the other names of the same memory
    owners: the modules that hold it and see it as this matrix; `holders`, besides these, those that
        see it transposed or in other parts: all under whose names it has a mask
    called: all names by which patterns choose it, those of its modules included
    """

    name: str
    parameter: nn.Parameter
    module: nn.Module
    local_name: str
    view: View
    shared_with: tuple[str, ...] = ()
    owners: tuple[tuple[nn.Module, str], ...] = field(default=(), repr=False)
    holders: tuple[tuple[nn.Module, str], ...] = field(default=(), repr=False)
    called: tuple[str, ...] = field(default=(), repr=False)

    @property
    def classes(self) -> list[str]:
        """The classes by which patterns choose it: those of its modules and their bases."""
        return [cls.__name__ for module, _ in self.holders for cls in type(module).__mro__[:-1]]

    @property
    def weight(self) -> torch.Tensor:
        """The parameter as it is stored, or the part of it, detached; a sharded one is gathered."""
        weight = gathered(self.parameter)
        return self.entries(weight) if self.view.part else weight

    @property
    def outline(self) -> torch.Tensor:
        """What has the shape and the dtype of `weight`; of a sharded one without its values."""
        whole = outline(self.parameter)
        return self.entries(whole) if self.view.part else whole

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `weight`, which is not gathered for it."""
        return tuple(self.outline.shape)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """The shape of `matrices()`, which are not gathered for it."""
        return tuple(self.as_matrices(outline(self.parameter)).shape)

    @property
    def sharded(self) -> bool:
        """Whether each process holds but a part of the parameter."""
        return is_sharded(self.parameter)

    def entries(self, like: torch.Tensor) -> torch.Tensor:
        """The layer's own entries of a tensor shaped as its parameter; a view of its memory."""
        return self.view.of(like)

    def matrices(self) -> torch.Tensor:
        """The weight as a matrix (m, n), or a batch (b, m, n); rows are output features.

        Detached, and shares the parameter's memory where its layout allows. Of a sharded parameter
        it is the whole, which all processes gather.
        """
        return self.as_matrices(gathered(self.parameter))

    def as_matrices(self, like: torch.Tensor) -> torch.Tensor:
        """The layer's part of a tensor shaped as its parameter, shaped as `matrices()`."""
        return self.entries(like).flatten(2 if self.view.batch else 1)

    def write(self, values: torch.Tensor) -> None:
        """Set the parameter's entries in place to `values`, shaped as `matrices()`."""
        if not self.sharded:
            entries = self.entries(self.parameter.detach())
            entries.copy_(values.reshape(entries.shape))
            return
        whole = torch.empty(self.parameter.shape, dtype=values.dtype, device=values.device)
        entries = self.entries(whole)
        if entries.numel() < whole.numel():  # the other parts stay as they are
            whole = gathered(self.parameter).to(values)
            entries = self.entries(whole)
        entries.copy_(values.reshape(entries.shape))
        here(self.parameter).copy_(own_part(whole, self.parameter))


@dataclass(frozen=True)
class Skipped:
    """A parameter with two or more dimensions, or a part of it, that is left alone.

    Args:
        name: of the parameter, with the part in brackets: "lstm.weight_ih_l0[forget]".
        reason: why: what it is, or the pattern that leaves it out.

    >>> import torch
    >>> import spectral_engine as se
    >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2))
    >>> se.prune(model, sparsity=0.5).skipped
    [Skipped(name='0.weight', reason='an embedding; name it in targets to prune it')]
    """

    name: str
    reason: str


@dataclass(frozen=True)
class _Name:
    """One of the names of a weight: whose it is, and how it is seen there.

    called: the names that patterns match: its own and its module's, also as wrappers have them
    adapter: the part of an adapter that it belongs to, such as "lora_A"; empty for others
    hindrance: why it cannot be read or changed as it is, None if it can
    """

    full: str
    called: tuple[str, ...]
    module: nn.Module
    local: str
    parameter: nn.Parameter
    views: list[View]
    adapter: str
    hindrance: str | None

    @property
    def rank(self) -> int:
        """0 if pruned by default, 1 if only when asked for, 2 if not seen as a matrix."""
        return min((bool(view.opt_in) for view in self.views), default=2)

    def of(self, view: View) -> str:
        return f"{self.full}[{view.part}]" if view.part else self.full

    def sees(self, view: View) -> Hashable:
        """Equal for two names under which the view's part is the same matrix, row by row."""
        if is_lazy(self.parameter) or self.hindrance is not None:
            return id(self.parameter)
        weight = outline(self.parameter)
        same = [one for one in self.views if one.part == view.part]
        entries = same[0].of(weight) if same else weight
        shape, stride, rows = entries.shape, entries.stride(), 1 + view.batch
        return shape[:rows], stride[:rows], axes(shape[rows:], stride[rows:])


#: A module's own weights by local name; None for one that is not there.
Weights = Callable[[nn.Module], Iterable[tuple[str, nn.Parameter | None]]]


def find_layers(
    model: nn.Module,
    selector: Chooser,
    split: Any = None,
    *,
    every: bool = False,
    weights: Weights = lambda module: module._parameters.items(),
) -> tuple[list[Layer], list[Skipped]]:
    """The layers of a model to prune, each shared weight once, and what is left alone.

    A weight is shared if it is one parameter under several names, as through a module that is
    used twice, or if several parameters are the same memory, as a weight and its transpose. It goes
    by the first of its names under which it is pruned by default, if there is one, and is seen as
    that module sees it. Names are those of the model inside wrappers (see `named_modules`).

    Args:
        model: nothing of it is changed.
        selector: chooses among its weights.
        split: weights that are several matrices, one above the other; see `Select`.
        every: also what is only pruned when asked for, and as (shape[0], -1) what no view sees;
            names are the same with and without.
        weights: what a module holds itself; its parameters.

    Returns:
        The layers in the order of the modules, and what is skipped, with the reasons.

    Raises:
        TypeError: `split` is no such mapping, or a registered function gives no views.
        ValueError: `split`, or a registered view, does not fit; a weight that is chosen has no
            plain memory (see `obstacle`), except with `every`, which skips it.
    """
    splits = Splits(split)
    settle(model)
    adapters, flat = adapters_in(model), is_sharded_flat(model)
    wrapped = {id(module): name for name, module in model.named_modules()}
    shared: dict[Hashable, list[_Name]] = {}
    for prefix, module in named_modules(model):
        views = views_of(module)
        for local, parameter in weights(module):
            own = [view for view in views if view.parameter == local]
            if parameter is None or not (own or _has_matrix(parameter)):
                continue
            full = parameter_name(prefix, local)
            hindrance = obstacle(parameter) or (FLAT if flat and parameter.ndim < 2 else None)
            if hindrance is None:
                own = splits.apply(own, parameter, full, prefix)
            outside = wrapped[id(module)]
            called = dict.fromkeys((full, prefix, parameter_name(outside, local), outside))
            adapter = adapters.get(id(module), "")
            shared.setdefault(memory_of(parameter), []).append(
                _Name(full, tuple(called), module, local, parameter, own, adapter, hindrance)
            )
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    for names in shared.values():
        names.sort(key=lambda name: name.rank)
        if every and not names[0].views:
            names[0].views.append(View(names[0].local))
        found, left = _select(names, selector, every)
        layers += found
        skipped += left
    for full, prefix, module in weights_held_flat(model) if flat else ():
        classes = [cls.__name__ for cls in type(module).__mro__[:-1]]
        reason = selector.reason_against([full, prefix], classes)
        if reason is None and not every:
            raise ValueError(f"model: {full} {FLAT}")
        skipped.append(Skipped(full, reason or FLAT))
    selector.note_unmatched(splits.unmatched)
    return layers, skipped


def layers_to_prune(
    model: nn.Module, selector: Chooser, split: Any = None
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
            f"targets: no prunable weight is left with {selector}{reasons(skipped)}; expected a "
            "class name, a glob or 're:...' that matches a weight of a known layer"
        )
    return layers, skipped


def reasons(skipped: Sequence[Skipped]) -> str:
    """Why the first few are left alone, for a message."""
    return "".join(f"; {one.name}: {one.reason}" for one in skipped[:3])


def _select(
    names: list[_Name], selector: Chooser, every: bool
) -> tuple[list[Layer], list[Skipped]]:
    """The views of one weight that are pruned, and those that are not."""
    first, *others = names
    called = [name for one in names for name in one.called]
    classes = [cls.__name__ for one in names for cls in type(one.module).__mro__[:-1]]
    parameter = first.parameter
    if not first.views:
        selector.reason_against(called, classes)  # so that a pattern for it counts as matched
        return [], [Skipped(first.full, reason_not_seen(first.module, first.local))]
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    # A weight that is an embedding under one of its names is one under all: pruning the output
    # head that shares it would prune the embedding.
    opt_ins = [view.opt_in for one in names for view in one.views if view.opt_in]
    for own in first.views:
        view = replace(own, opt_in=opt_ins[0] if opt_ins else "")
        aliases = [one.of(view) for one in others]
        names_of_view = (*called, first.of(view), *aliases)
        opt_in = "" if every else view.opt_in
        if first.adapter and not every:
            reason = reason_against_adapter(first.adapter, names_of_view, selector)
        else:
            reason = selector.reason_against(names_of_view, classes, opt_in)
        if reason is None and first.hindrance is not None and not every:
            raise ValueError(f"model: {first.of(view)} {first.hindrance}")
        reason = reason or first.hindrance
        if reason is not None:
            skipped.append(Skipped(first.of(view), reason))
            continue
        _check(view, parameter, first.of(view))
        layers.append(
            Layer(
                first.of(view),
                parameter,
                first.module,
                first.local,
                view,
                tuple(aliases),
                _modules([one for one in names if one.sees(view) == first.sees(view)]),
                _modules(names),
                names_of_view,
            )
        )
    if not layers and len({one.reason for one in skipped}) == 1:
        skipped = [Skipped(first.full, skipped[0].reason)]
    return layers, skipped


def _modules(names: list[_Name]) -> tuple[tuple[nn.Module, str], ...]:
    return tuple({(id(one.module), one.local): (one.module, one.local) for one in names}.values())


def _check(view: View, parameter: nn.Parameter, name: str) -> None:
    """Refuse a view that is no matrix, or no part of the parameter's memory."""
    if is_lazy(parameter):
        return
    weight = parameter.detach()
    if is_sharded(parameter):  # seen in memory that nobody writes to
        weight = torch.empty(parameter.shape, dtype=parameter.dtype)
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


def _has_matrix(parameter: nn.Parameter) -> bool:
    return not is_lazy(parameter) and parameter.ndim >= 2
