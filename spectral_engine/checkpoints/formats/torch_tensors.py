"""Where the elements of a stored tensor lie, and which tensors share them."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .base import CheckpointError, brief, check_element_count


@dataclass(frozen=True)
class Storage:
    """A run of bytes in the file: the key that names it, the dtype it was saved as, its bytes."""

    key: str
    dtype: torch.dtype
    size: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in its storage; `offset` and `stride` count elements, as in torch."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def start(self) -> int:
        """The byte of the storage at which the first element lies."""
        return self.offset * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The byte of the storage after the last element, or `start` if there is none."""
        if 0 in self.shape:
            return self.start
        steps = zip(self.shape, self.stride, strict=True)
        return self.start + self.dtype.itemsize * (1 + sum((n - 1) * step for n, step in steps))

    @property
    def nbytes(self) -> int:
        """The bytes that the elements take one after the other."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def place(self) -> tuple[object, ...]:
        """Equal for tensors of the same elements, one of which may be the other transposed."""
        return self.storage.key, self.offset, self.dtype, tuple(self._steps())

    @property
    def spread(self) -> bool:
        """Whether no two elements can be the same memory, as those of an expanded tensor are."""
        reach = 0
        for stride, size in self._steps():
            if stride <= reach:
                return False
            reach += (size - 1) * stride
        return True

    @property
    def row_major(self) -> bool:
        """Whether the elements lie one after the other in the order of their indices."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

    def _steps(self) -> list[tuple[int, int]]:
        """(stride, size) of the dimensions with more than one index, smallest stride first."""
        steps = zip(self.stride, self.shape, strict=True)
        return sorted(step for step in steps if step[1] > 1)


def clusters(tensors: Iterable[StoredTensor]) -> Iterator[list[StoredTensor]]:
    """Group the tensors of one storage whose bytes, from first to last, reach into each other."""
    group: list[StoredTensor] = []
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if group and tensor.start >= end:
            yield group
            group = []
        group.append(tensor)
        end = max(end, tensor.end)
    if group:
        yield group


def overlapping(cluster: list[StoredTensor]) -> set[StoredTensor]:
    """Find the tensors of a cluster that share some, not all, of their elements with another one.

    Columns of one matrix reach into each other and share nothing; every byte is looked at.
    """
    one_of: dict[object, list[StoredTensor]] = {}
    for tensor in cluster:
        one_of.setdefault(tensor.place, []).append(tensor)
    if len(one_of) == 1:
        return set()
    if len({tensor.dtype.itemsize for tensor in cluster}) > 1:
        return set(cluster)
    size = cluster[0].dtype.itemsize
    first = min(tensor.offset for tensor in cluster)
    counts = torch.zeros(max(tensor.end for tensor in cluster) // size - first, dtype=torch.uint8)

    def view(tensor: StoredTensor) -> torch.Tensor:
        start = tensor.offset - first
        if not tensor.spread:  # Its elements may be very many, in few places.
            return counts[start : tensor.end // size - first]
        steps = tensor._steps()
        return counts.as_strided([n for _, n in steps], [stride for stride, _ in steps], start)

    for group in one_of.values():
        held = view(group[0])
        held.copy_(held.clamp(max=1) + 1)
    return {
        tensor for group in one_of.values() for tensor in group if bool((view(group[0]) > 1).any())
    }


@dataclass(frozen=True, eq=False)
class Foreign:
    """An object that stays in the file unread; `tensor` where it is some kind of tensor."""

    kind: str
    tensor: bool = False


def check_extent(tensor: StoredTensor, path: Path) -> None:
    """Refuse a tensor whose last element lies beyond its storage."""
    check_element_count(tensor.shape, path, f"a tensor of storage {tensor.storage.key}")
    if len(tensor.shape) != len(tensor.stride):
        raise CheckpointError(path, "a stride for each dimension", brief(tensor))
    if 0 in tensor.shape:
        return
    steps = zip(tensor.shape, tensor.stride, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
    if (last + 1) * tensor.dtype.itemsize > tensor.storage.size:
        raise CheckpointError(
            path,
            f"a tensor within the {tensor.storage.size} bytes of its storage",
            f"shape {brief(tensor.shape)}, stride {brief(tensor.stride)}, {tensor.dtype}",
        )
