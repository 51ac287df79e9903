"""What every checkpoint offers, and the error of a file that breaks its format.

A checkpoint is read one tensor at a time, so that a file larger than memory can be looked at and
rewritten. An edit is how a rewriter asks for the new value of a tensor: `None` means that the
stored bytes stay.
"""

import io
import json
import os
import reprlib
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import torch

Edit = Callable[[str], torch.Tensor | None]

#: The bound that the safetensors format sets on its header; index files get the same.
MAX_JSON_BYTES = 100_000_000
MAX_ELEMENTS = 2**63 - 1

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
#: How files begin that are found in place of weights, and what to say of them.
STAND_INS = {
    LFS_POINTER: ("weights", "a git-lfs pointer to them; `git lfs pull` fetches the file itself"),
    b"# xet version": ("weights", "a Xet pointer to them; `git xet` fetches the file itself"),
    b"<!doctype html": ("weights", "a web page; the download went wrong"),
    b"<html": ("weights", "a web page; the download went wrong"),
}

_REPR = reprlib.Repr()
_REPR.maxstring = 200


def brief(value: object) -> str:
    """`repr` of a value out of a file, cut to a length that an error message can carry."""
    return _REPR.repr(value)


class CheckpointError(ValueError):
    """A weight file that is not what its format says: names the file, the rule and the breach."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        super().__init__(path, expected, found)

    def __str__(self) -> str:
        path, expected, found = self.args
        return f"{path}: expected {expected}, found {found}"


class Checkpoint(ABC):
    """Named tensors in a file or a folder; a context manager that closes it."""

    path: Path

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """The names of the tensors, in the order in which the file stores them."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; KeyError for a name that is not in the checkpoint."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype | str:
        """The torch dtype, or the format's own name for a dtype that torch lacks."""

    @abstractmethod
    def read(self, name: str) -> torch.Tensor:
        """A private copy on the CPU; CheckpointError if torch lacks the dtype."""

    def read_rows(self, name: str, rows: Sequence[int]) -> torch.Tensor | None:
        """Rows of a tensor by their numbers, each of which is there; None without less reading."""
        return None

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, object]:
        """What the file says about itself beside its tensors."""

    def tied_to(self, name: str) -> str | None:
        """The earlier tensor of the same elements, if there is one; this may be its transpose."""
        return None

    def reason_to_keep(self, name: str) -> str | None:
        """Why a tensor can be read but not edited, or None."""
        return None

    def other_weights(self) -> dict[str, str]:
        """What holds other weights, and is written as it is: a name for each, and the reason.

        A file of the folder, a tensor that the folder's index does not speak of, or a second set
        of weights in a training checkpoint.
        """
        return {}

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class CheckpointFile(Checkpoint):
    """A checkpoint in one file, which can be written again in its own format."""

    @abstractmethod
    def write(self, file: BinaryIO, edit: Edit) -> None:
        """Write this checkpoint to an empty file, each tensor as `edit(name)` says."""

    def non_tensors(self) -> list[str]:
        """Entries beside the tensors that only the file's own format can keep."""
        return []

    def hide(self, names: Collection[str]) -> None:
        """Leave tensors out of all that is read, edited and tied; a writer copies them.

        A format whose tensors share no memory has nothing to do: its caller does not ask for them.
        """

    def from_tied(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """The value of a tied tensor, from that of the tensor that `tied_to` names."""
        return value


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file to read; a folder, pipe or device is refused, not waited on."""
    found = os.stat(path).st_mode
    if not stat.S_ISREG(found):
        raise CheckpointError(path, "a regular file", stat.filemode(found))
    return open(path, "rb")


def open_weights(path: Path) -> io.BufferedReader:
    """Open a regular file to read weights; CheckpointError for a text that stands in for them."""
    file = open_regular(path)
    with naming(path):
        start = file.peek(len(LFS_POINTER))
    for text, (expected, found) in STAND_INS.items():
        if start.lower().startswith(text):
            file.close()
            raise CheckpointError(path, expected, found)
    return file


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name into an I/O error that lacks one (a full disk, a failing read)."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def parse_json_object(text: bytes, path: Path, what: str) -> dict[str, object]:
    """A JSON object whose keys are all different, out of a file that is not to be trusted."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) < len(pairs):
            [(name, count)] = Counter(key for key, _ in pairs).most_common(1)
            raise CheckpointError(path, f"each name once in {what}", f"{brief(name)} {count} times")
        return result

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"{what} in JSON", brief(str(error))) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(path, f"{what} to be a JSON object", brief(parsed))
    return parsed


def check_name(name: str, path: Path) -> None:
    """Refuse a tensor name that cannot be written in UTF-8 (one with half a surrogate pair)."""
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise CheckpointError(path, "tensor names in valid Unicode", brief(name))


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in row-major order, without a copy where it lies so already."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def check_element_count(shape: tuple[int, ...], path: Path, name: str) -> None:
    """Refuse a shape whose strides would leave 64 bits, before any arithmetic on it."""
    total = 1
    for size in shape:
        total *= max(size, 1)
        if total > MAX_ELEMENTS:
            raise CheckpointError(
                path, f"{brief(name)} to have fewer than 2^63 elements", f"shape {brief(shape)}"
            )
