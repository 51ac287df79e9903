"""Compressed weights that transformers makes dense while it loads them: alone, or merged.

transformers renames the tensors of a file, and merges some into one parameter, such as the matrices
of all experts. A compressed weight is several tensors: they are brought together and made dense
first, and then go the way of the dense weight.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers.core_model_loading import (  # type: ignore[import-not-found]
    ConversionOps,
    WeightConverter,
    apply_converters,
    apply_renamings,
)

from spectral_engine.checkpoints.sparse import forms

#: The tensors of a file that hold a weight, by part; by "" where it is dense.
Stored = Mapping[str, str]


class Unpack(ConversionOps):  # type: ignore[misc]
    """The dense weight from its parts; `names`: which, in the order of the converter's sources."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        full_layer_name: str = "",
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        found = [_only(input_dict[pattern]) for pattern in source_patterns]
        return {full_layer_name: _dense(dict(zip(self.names, found, strict=True)))}


class Merge(ConversionOps):  # type: ignore[misc]
    """What a converter of transformers makes of dense weights, from those of which some have parts.

    members: for each source pattern of that converter the parts of each of its weights; all parts
    of all of them, one after another, are this one's sources.
    """

    def __init__(self, converter: Any, members: Mapping[str, list[tuple[str, ...]]]) -> None:
        self.converter, self.members = converter, members

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        full_layer_name: str = "",
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        given = iter([_only(input_dict[pattern]) for pattern in source_patterns])
        made: Any = {
            pattern: [_dense({part: next(given) for part in parts}) for parts in weights]
            for pattern, weights in self.members.items()
        }
        kwargs["target_patterns"] = self.converter.target_patterns
        for operation in self.converter.operations:
            made = operation.convert(
                made,
                source_patterns=self.converter.source_patterns,
                full_layer_name=full_layer_name,
                **kwargs,
            )
        [weight] = made.values()
        return {full_layer_name: _only(weight)}


def alone(stored: Stored, target: str) -> Any:
    """The converter that makes one weight dense; `stored`: its tensors' names, once renamed."""
    return WeightConverter(list(map(_exactly, stored.values())), target, [Unpack(stored)])


def renamed(name: str, renamings: Iterable[Any]) -> str:
    """What transformers calls a tensor of a file after renaming."""
    found: str = apply_renamings(name, renamings)
    return found


def merging(
    unplaced: Mapping[str, Stored], renamings: list[Any], converters: list[Any]
) -> list[Any]:
    """The converters of what is merged, where a part of it is compressed.

    Args:
        unplaced: the weights of the files that the model has under no name of its own.
        renamings, converters: of transformers, for this model.

    Raises:
        ValueError: a compressed weight that transformers takes apart.
    """
    merged: dict[str, tuple[Any, dict[str, list[Stored]]]] = {}
    for name, stored in unplaced.items():
        target, pattern = apply_converters(renamed(name, renamings), converters)
        if pattern is None:
            continue
        converter = next(one for one in converters if pattern in one.source_patterns)
        own = merged.setdefault(target, (converter, {}))[1]
        own.setdefault(pattern, []).append(stored)
    made = []
    for target, (converter, sources) in merged.items():
        weights = [stored for group in sources.values() for stored in group]
        if all("" in stored for stored in weights):
            continue  # transformers does it
        if len(converter.target_patterns) > 1:
            raise ValueError(
                f"{target}: expected a dense weight, since transformers takes it apart while it "
                "loads it; got a compressed one. `spectral-engine decompress` gives a dense folder"
            )
        patterns = [
            _exactly(renamed(tensor, renamings)) for one in weights for tensor in one.values()
        ]
        members = {pattern: [tuple(one) for one in group] for pattern, group in sources.items()}
        made.append(WeightConverter(patterns, target, [Merge(converter, members)]))
    return made


def is_ours(conversion: Any) -> bool:
    """Whether a conversion is one of those here, of which saving a model undoes nothing."""
    operations = getattr(conversion, "operations", ())
    return any(isinstance(one, (Unpack, Merge)) for one in operations)


def _exactly(name: str) -> str:
    return f"^{re.escape(name)}$"


def _dense(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return parts[""] if "" in parts else forms.decode(parts)


def _only(tensors: Any) -> torch.Tensor:
    found: torch.Tensor = tensors[0] if isinstance(tensors, list) else tensors
    return found
