"""Where the weights of a model lie in its files, read for one piece and given back changed.

A file may call a tensor otherwise than the model does, with the prefix of the base model or without
it; transformers knows of older names, and of what it merges on loading, such as the experts of a
mixture (see `conversions`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spectral_engine.checkpoints import Checkpoint
from spectral_engine.checkpoints.formats.base import brief
from spectral_engine.streaming.files.conversions import conversions_of
from spectral_engine.streaming.pieces import IN_MEMORY, Piece, resident_parameters

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stored:
    """Tensors of the files that make some of the model's.

    files, names: what they are called in the files and in the model.
    load: from the files' tensors to the model's. store: back again.
    same: whether it is one tensor, which is the model's as it is.
    """

    files: tuple[str, ...]
    names: tuple[str, ...]
    load: Callable[[Tensors], Tensors]
    store: Callable[[Tensors], Tensors]
    same: bool = False


class FileWeights:
    """The weights of a model that stay in its files until they are asked for.

    Args:
        checkpoint: open for as long as weights are read.
        model: on the meta device, of the checkpoint's architecture.

    Raises:
        ValueError: a floating dtype that no forward runs in.
    """

    def __init__(self, checkpoint: Checkpoint, model: nn.Module) -> None:
        self._checkpoint = checkpoint
        self.dtype = compute_dtype(checkpoint)
        self._aliases = _aliases(model)
        shapes = {name: tuple(value.shape) for name, value in _tensors(model)}
        self._stored: dict[str, list[Stored]] = {}
        for stored in _all_stored(checkpoint, model, shapes):
            for name in stored.names:
                self._stored.setdefault(name, []).append(stored)

    def read(self, names: Iterable[str]) -> Tensors:
        """The values of parameters and buffers, by their names in the model.

        Raises:
            ValueError: a name that no tensor of the files makes.
        """
        found: Tensors = {}
        for name in names:
            if name in found:
                continue
            stored = self._of(name)
            if not stored:
                raise ValueError(
                    f"{self._checkpoint.path}: expected {brief(name)} of the model among its "
                    f"tensors; found none. {IN_MEMORY}"
                )
            made = stored[0].load({file: self._checkpoint.read(file) for file in stored[0].files})
            for one in self._aliases.get(name, [name]):
                if one in made:
                    found[name] = self._cast(made[one])
            for one, value in made.items():
                found.setdefault(one, self._cast(value))
        return found

    def rows(self, name: str, rows: Sequence[int]) -> torch.Tensor | None:
        """Rows of a parameter, by its name in the model.

        Args:
            rows: their numbers, each one that is there.

        Returns:
            (len(rows), ...), or None where the files give only the whole.
        """
        stored = self._of(name)
        if not stored or not stored[0].same:
            return None
        found = self._checkpoint.read_rows(stored[0].files[0], rows)
        return None if found is None else self._cast(found)

    def shape(self, name: str) -> tuple[int, ...]:
        """That of a parameter that `rows` gives."""
        return self._checkpoint.shape(self._of(name)[0].files[0])

    def has(self, name: str) -> bool:
        """Whether the files have this parameter or buffer."""
        return bool(self._of(name))

    def load_resident(self, model: nn.Module, pieces: Sequence[Piece]) -> None:
        """Load what belongs to no piece of a model, and stays: norms, and buffers that are saved.

        Raises:
            ValueError: as `read`.
        """
        for name, module, local, parameter in list(resident_parameters(model, pieces)):
            if parameter.is_meta:
                value = self.read([name])[name]
                kept = parameter.requires_grad
                module._parameters[local] = nn.Parameter(value, requires_grad=kept)
        for prefix, module in model.named_modules():
            for local, buffer in module._buffers.items():
                name = f"{prefix}.{local}" if prefix else local
                saved = buffer is not None and local not in module._non_persistent_buffers_set
                if saved and self.has(name):
                    value = self.read([name])[name]
                    module._buffers[local] = value.to(buffer.dtype) if buffer is not None else None

    def changed(self, values: Mapping[str, torch.Tensor], others: Mapping[str, Any]) -> Tensors:
        """What becomes of the files' tensors where parameters have these values.

        Args:
            values: by the names in the model.
            others: the other parameters of the piece, for tensors that lie together in the files.
        """
        result: Tensors = {}
        for name in values:
            for one in self._all(name):
                made = {n: self._value(n, values, others) for n in one.names}
                for file, tensor in one.store(made).items():
                    dtype = self._checkpoint.dtype(file)
                    if isinstance(dtype, torch.dtype):
                        result[file] = tensor.to(dtype).contiguous()
        return result

    def names_of(self, piece_names: Iterable[str]) -> list[str]:
        """The files' tensors of parameters of these names."""
        return [file for name in piece_names for one in self._all(name) for file in one.files]

    def _value(
        self, name: str, values: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        for alias in self._aliases.get(name, [name]):
            for known in (values, others):
                if alias in known:
                    return known[alias]
        raise ValueError(
            f"{self._checkpoint.path}: {brief(name)} is stored together with weights of another "
            f"block. {IN_MEMORY}"
        )

    def _of(self, name: str) -> list[Stored]:
        """The first set of tensors that makes a parameter, under any of its names."""
        return self._all(name)[:1]

    def _all(self, name: str) -> list[Stored]:
        aliases = self._aliases.get(name, [name])
        return [one for alias in aliases for one in self._stored.get(alias, [])]

    def _cast(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value


class Touched:
    """Notes which parameters are changed, by their `id` in `seen`; nothing is brought back."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def __call__(self, tensor: torch.Tensor) -> None:
        self.seen.add(id(tensor))


def compute_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The floating dtype that most of a checkpoint's entries have: the model runs in it.

    Raises:
        ValueError: that is one of eight bits or fewer, or there is none.
    """
    sizes: dict[torch.dtype, int] = {}
    for name in checkpoint.names:
        dtype = checkpoint.dtype(name)
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            entries = int(torch.Size(checkpoint.shape(name)).numel())
            sizes[dtype] = sizes.get(dtype, 0) + entries
    found = max(sizes, key=lambda dtype: sizes[dtype], default=None)
    if found is None or found.itemsize < 2:
        kind = "none" if found is None else str(found).removeprefix("torch.")
        raise ValueError(
            f"{checkpoint.path}: expected weights in float16, bfloat16, float32 or float64, in "
            f"which the model can run; found {kind}"
        )
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters under each of their names, and the buffers that a model saves."""
    yield from model.named_parameters(remove_duplicate=False)
    for prefix, module in model.named_modules():
        for local, buffer in module._buffers.items():
            if buffer is not None and local not in module._non_persistent_buffers_set:
                yield f"{prefix}.{local}" if prefix else local, buffer


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Of parameters that go by several names: all of them, for each."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: found for found in names.values() if len(found) > 1 for name in found}


def _all_stored(
    checkpoint: Checkpoint, model: nn.Module, shapes: Mapping[str, Sequence[int]]
) -> Iterator[Stored]:
    left: list[str] = []
    for file in checkpoint.names:
        name = _plain_name(file, model, shapes)
        if name is None or tuple(shapes[name]) != checkpoint.shape(file):
            left.append(file)
        else:
            yield Stored((file,), (name,), _renaming(file, name), _renaming(name, file), True)
    for files, names, load, store in conversions_of(model, left):
        meta = {file: torch.empty(checkpoint.shape(file), device="meta") for file in files}
        made = {name: tuple(value.shape) for name, value in load(meta).items()}
        if all(tuple(shapes.get(name, ())) == shape for name, shape in made.items()):
            yield Stored(tuple(files), tuple(names), load, store)


def _renaming(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {new: tensors[old]}


def _plain_name(file: str, model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> str | None:
    prefix = getattr(model, "base_model_prefix", "")
    names = [file, *([f"{prefix}.{file}", file.removeprefix(f"{prefix}.")] if prefix else [])]
    return next((name for name in names if name in shapes), None)
