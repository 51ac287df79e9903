"""Tensors that transformers renames, merges or splits when it loads them, and back again.

transformers 5 describes for each architecture what its files call a weight and what is done to it:
the experts of a mixture, a file each, become one tensor of three dimensions. The descriptions are
taken from transformers, so that each architecture it adds is known here too; older versions have
none, and name tensors as the files do.
"""

import copy
import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

Tensors = dict[str, torch.Tensor]
#: Files' names, the model's names, and the functions from one to the other.
Conversion = tuple[
    Sequence[str], Sequence[str], Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]
]


def conversions_of(model: nn.Module, files: Sequence[str]) -> Iterator[Conversion]:
    """How transformers makes tensors of a model from tensors of files.

    Args:
        model: one of transformers, or any other, of which nothing is known.
        files: the names of tensors in the files that the model does not have itself.

    Returns:
        Each group of files' tensors that make some of the model's, with the functions from the one
        to the other and back; what leads nowhere is left out.
    """
    if not files or not hasattr(model, "base_model_prefix"):
        return
    try:
        mapping: Any = importlib.import_module("transformers.conversion_mapping")
        loading: Any = importlib.import_module("transformers.core_model_loading")
    except ModuleNotFoundError:
        return
    transforms = mapping.get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, loading.WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, loading.WeightConverter)]
    known = model.state_dict()
    groups: dict[str, list[tuple[str, str | None]]] = {}
    for file in sorted(files, key=loading.dot_natural_key):
        name, pattern = loading.rename_source_key(
            file, renamings, converters, model.base_model_prefix, known
        )
        groups.setdefault(name, []).append((file, pattern))
    for name, sources in groups.items():
        if all(pattern is None for _, pattern in sources):
            if name in known:
                [(file, _), *_] = sources
                yield [file], [name], _renamed(file, name), _renamed(name, file)
            continue
        converter = next(one for one in converters if sources[0][1] in one.source_patterns)
        yield _converted(loading, model, name, sources, converter, renamings)


def _converted(
    loading: Any,
    model: nn.Module,
    name: str,
    sources: Sequence[tuple[str, str | None]],
    converter: Any,
    renamings: Sequence[Any],
) -> Conversion:
    """A group of tensors that a converter of transformers makes others of."""
    files = [file for file, _ in sources]

    def load(tensors: Tensors) -> Tensors:
        one = copy.deepcopy(converter)
        for file, pattern in sources:
            one.add_tensor(name, file, pattern, tensors[file])
        return _plain(one.convert(name, model=model, config=getattr(model, "config", None)))

    by_renamed = {loading.apply_renamings(file, renamings): file for file in files}
    names = _names(name, converter)

    def store(tensors: Tensors) -> Tensors:
        back = copy.deepcopy(converter).reverse_transform()
        first = None
        for own in names:
            renamed, pattern = back.rename_source_key(own)
            first = renamed if first is None else first
            back.add_tensor(first, own, pattern, tensors[own])
        made = _plain(back.convert(first, model=model, config=getattr(model, "config", None)))
        return {by_renamed[one]: value for one, value in made.items()}

    return files, names, load, store


def _names(name: str, converter: Any) -> list[str]:
    """Every tensor that a converter makes beside the one that a group goes by."""
    first, *others = converter.target_patterns
    return [name, *(name.replace(first, other, 1) for other in others)]


def _plain(made: dict[str, Any]) -> Tensors:
    return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}


def _renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {new: tensors[old]}
