"""Which weights of a model are pruned, and why the others are not."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

#: Module classes whose `weight`, seen as (shape[0], -1), is a matrix: rows are output features.
PRUNABLE: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Layer:
    """A weight to prune: its parameter name, its module's name and classes, and its other names."""

    name: str
    module: str
    classes: tuple[str, ...]
    parameter: nn.Parameter
    shared_with: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Skipped:
    """A parameter with two or more dimensions that is left alone."""

    name: str
    reason: str


def patterns(value: Any, argument: str) -> list[str]:
    """One pattern or several, as a list; TypeError for anything else."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Iterable):
        found = list(value)
        if all(isinstance(pattern, str) for pattern in found):
            return found
    raise TypeError(f"{argument}: expected a string or a list of strings; got {value!r}")


def matches(pattern: str, names: Sequence[str], classes: Sequence[str], argument: str) -> bool:
    """Whether a pattern names a layer: a class name, a glob, or "re:..." that must match fully.

    Raises:
        ValueError: a regular expression that does not compile.
    """
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise ValueError(
                f"{argument}: expected a regular expression after 're:'; got {pattern!r}: {error}"
            ) from error
        return any(expression.fullmatch(name) for name in names)
    return pattern in classes or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def select(
    names: Sequence[str], classes: Sequence[str], targets: list[str] | None, ignore: list[str]
) -> str | None:
    """None if a layer is to be pruned, else the reason why not."""
    for pattern in ignore:
        if matches(pattern, names, classes, "ignore"):
            return f"ignored by {pattern!r}"
    if targets is not None and not any(
        matches(pattern, names, classes, "targets") for pattern in targets
    ):
        return "not among targets"
    return None


def find_layers(
    model: nn.Module, targets: list[str] | None, ignore: list[str]
) -> tuple[list[Layer], list[Skipped]]:
    """The layers of a model to prune, each shared weight once, and what is left alone.

    Patterns are tried on the module's name, the parameter's name and the names of the module's
    classes. A shared weight is pruned if it is selected under any of its names and ignored
    under none.
    """
    layers: dict[int, Layer] = {}
    reasons: dict[int, tuple[str, str]] = {}
    prunable = {
        id(module._parameters["weight"])
        for module in model.modules()
        if isinstance(module, PRUNABLE) and module._parameters.get("weight") is not None
    }
    ignored: set[int] = set()
    for module_name, module in model.named_modules():
        classes = tuple(cls.__name__ for cls in type(module).__mro__[:-1])
        for local_name, parameter in module._parameters.items():
            if parameter is None or parameter.ndim < 2:
                continue
            name = f"{module_name}.{local_name}" if module_name else local_name
            key = id(parameter)
            if key in layers:
                layers[key].shared_with.append(name)
            if not isinstance(module, PRUNABLE) or local_name != "weight":
                if key not in prunable:
                    kind = type(module).__name__
                    reasons.setdefault(key, (name, f"{kind}.{local_name} is not prunable yet"))
                continue
            reason = select((module_name, name), classes, targets, ignore)
            if reason is not None:
                reasons.setdefault(key, (name, reason))
                if reason.startswith("ignored"):
                    ignored.add(key)
            elif key not in layers:
                layers[key] = Layer(name, module_name, classes, parameter)
    kept = [layer for key, layer in layers.items() if key not in ignored]
    skipped = [
        Skipped(name, reason)
        for key, (name, reason) in reasons.items()
        if key not in layers or key in ignored
    ]
    return kept, skipped


def require_ready(layers: list[Layer]) -> None:
    """Refuse what cannot be pruned, before anything is changed.

    Raises:
        ValueError: a weight on the meta device, with no entries, or not finite.
    """
    for layer in layers:
        weight = layer.parameter
        if weight.is_meta:
            raise ValueError(f"model: {layer.name} is on the meta device; load its weights first")
        if weight.numel() == 0:
            raise ValueError(f"model: {layer.name} is empty, of shape {tuple(weight.shape)}")
        if not weight.is_floating_point():
            raise TypeError(f"model: {layer.name} is {weight.dtype}; expected floating point")
        low, high = torch.aminmax(weight.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ValueError(f"model: {layer.name} holds NaN or infinity")
