"""Which weights of a model are pruned, and why the others are not."""

import fnmatch
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from spectral_kernels import check_weight
from torch import nn
from torch.nn.parameter import is_lazy

#: Module classes whose `weight`, seen as (shape[0], -1), is a matrix: rows are output features.
PRUNABLE: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: The kernels score in float32.
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Layer:
    """A weight to prune: its parameter name, and the other names of the same memory."""

    name: str
    parameter: nn.Parameter
    shared_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A parameter with two or more dimensions that is left alone."""

    name: str
    reason: str


@dataclass
class _Shared:
    """A parameter and all its names, those of layers' weights apart, with what patterns see."""

    parameter: nn.Parameter
    prunable: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)


@dataclass
class Selector:
    """Patterns that choose weights: class names, globs over names, "re:..." that must match fully.

    A weight with several names is chosen if one of `targets` matches any of them and none of
    `ignore` does. `unmatched` are the patterns that have matched nothing yet, so that a mistyped
    one does not go unseen.
    """

    targets: list[str] | None
    ignore: list[str]
    unmatched: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.unmatched = [
            *(f"targets {pattern!r}" for pattern in self.targets or []),
            *(f"ignore {pattern!r}" for pattern in self.ignore),
        ]

    @classmethod
    def of(cls, targets: Any, ignore: Any) -> "Selector":
        """From the arguments of `prune`: None, a pattern or several.

        Raises:
            TypeError: not strings. ValueError: a regular expression that does not compile.
        """
        return cls(
            None if targets is None else patterns(targets, "targets"),
            [] if ignore is None else patterns(ignore, "ignore"),
        )

    def reason_against(self, names: Sequence[str], classes: Sequence[str] = ()) -> str | None:
        """None if a weight of these names and classes is to be pruned, else the reason why not."""
        ignored = self._matching(self.ignore, names, classes, "ignore")
        wanted = self._matching(self.targets or [], names, classes, "targets")
        if ignored:
            return f"ignored by {ignored[0]!r}"
        return "not among targets" if self.targets is not None and not wanted else None

    def _matching(
        self, found: list[str], names: Sequence[str], classes: Sequence[str], argument: str
    ) -> list[str]:
        matching = [pattern for pattern in found if matches(pattern, names, classes)]
        used = {f"{argument} {pattern!r}" for pattern in matching}
        self.unmatched = [pattern for pattern in self.unmatched if pattern not in used]
        return matching


def select(
    names: Sequence[str], classes: Sequence[str], targets: list[str] | None, ignore: list[str]
) -> str | None:
    """`Selector.reason_against` for one weight."""
    return Selector(targets, ignore).reason_against(names, classes)


def patterns(value: Any, argument: str) -> list[str]:
    """One pattern or several, as a list.

    Raises:
        TypeError: not strings. ValueError: a regular expression that does not compile.
    """
    found = [value] if isinstance(value, str) else value
    if isinstance(found, Iterable):
        found = list(found)
    if not isinstance(found, list) or not all(isinstance(pattern, str) for pattern in found):
        raise TypeError(f"{argument}: expected a string or a list of strings; got {value!r}")
    for pattern in found:
        try:
            re.compile(pattern.removeprefix("re:") if pattern.startswith("re:") else "")
        except re.error as error:
            raise ValueError(
                f"{argument}: expected a regular expression after 're:'; got {pattern!r}: {error}"
            ) from error
    return found


def matches(pattern: str, names: Sequence[str], classes: Sequence[str] = ()) -> bool:
    """Whether a pattern is one of the classes, or matches one of the names."""
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], name) for name in names)
    return pattern in classes or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def find_layers(model: nn.Module, selector: Selector) -> tuple[list[Layer], list[Skipped]]:
    """The layers of a model to prune, each shared weight once, and what is left alone.

    A weight is shared if it is one parameter under several names, as through a module that is
    used twice, or if several parameters are the same memory. It goes by the first of its names
    that is a layer's weight.
    """
    shared: dict[Hashable, _Shared] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        classes = [cls.__name__ for cls in type(module).__mro__[:-1]]
        for local_name, parameter in module._parameters.items():
            prunable = isinstance(module, PRUNABLE) and local_name == "weight"
            if parameter is None or not (prunable or _has_matrix(parameter)):
                continue
            name = f"{module_name}.{local_name}" if module_name else local_name
            one = shared.setdefault(memory_of(parameter), _Shared(parameter))
            (one.prunable if prunable else one.others).append(name)
            one.names += [name, module_name]
            one.classes += classes
    layers, skipped = [], []
    for one in shared.values():
        first, *others = one.prunable + one.others
        reason = selector.reason_against(one.names, one.classes)
        if not one.prunable:
            reason = f"{one.classes[0]}.{first.rpartition('.')[2]} is not prunable yet"
        if reason is None:
            layers.append(Layer(first, one.parameter, tuple(others)))
        else:
            skipped.append(Skipped(first, reason))
    return layers, skipped


def _has_matrix(parameter: nn.Parameter) -> bool:
    return not is_lazy(parameter) and parameter.ndim >= 2


def memory_of(parameter: torch.Tensor) -> Hashable:
    """Equal for two parameters that are the same entries of the same memory."""
    if is_lazy(parameter) or parameter.is_meta or parameter.data_ptr() == 0:
        return id(parameter)
    place = (parameter.device, parameter.data_ptr(), parameter.dtype)
    return (*place, tuple(parameter.shape), parameter.stride())


def require_ready(layers: Sequence[Layer]) -> None:
    """Refuse what cannot be pruned, before anything is changed.

    Raises:
        TypeError: a dtype or a device that has no kernels.
        ValueError: a weight not initialised, on the meta device, empty, or with entries that are
            not finite in float32, in which they are scored.
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
        check_weight(weight, f"model: {layer.name}")
        low, high = torch.aminmax(weight.detach())
        if not (bool(low >= -LARGEST) and bool(high <= LARGEST)):
            raise ValueError(
                f"model: {layer.name} holds NaN, infinity or entries too large for float32"
            )
