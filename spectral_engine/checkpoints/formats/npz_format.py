"""NumPy's .npz: a zip archive of arrays, read one at a time and never unpickled.

The archive's members are checked before any is opened (see `zip_archive`), and each array must
take exactly the bytes that its member states. A deflated member may still unpack to up to 1032
times its size: an array of zeros does, and takes its memory when it is read, not before.
"""

import errno
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy

from .base import (
    CheckpointError,
    CheckpointFile,
    Edit,
    brief,
    check_element_count,
    check_name,
    naming,
    open_weights,
)
from .zip_archive import checked_members

SUFFIX = ".npy"
CHUNK = 1 << 22
_HEADER_READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

#: What zipfile, the decompressors and the .npy header parser raise on damaged bytes.
_MALFORMED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Member:
    """One array of the archive."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class NpzFile(CheckpointFile):
    """An .npz archive; arrays that are not edited are copied as they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as on_failure:
            file = on_failure.enter_context(open_weights(path))
            with _well_formed(path):
                self._archive = on_failure.enter_context(zipfile.ZipFile(file))
                infos = checked_members(self._archive, path)
                self._members = {_name(i, path): _member(self._archive, i, path) for i in infos}
            self._open = on_failure.pop_all()

    @property
    def names(self) -> list[str]:
        return list(self._members)

    @property
    def metadata(self) -> Mapping[str, object]:
        return {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._members[name].shape

    def dtype(self, name: str) -> torch.dtype | str:
        dtype = self._members[name].dtype
        try:
            return torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
        except TypeError:
            return str(dtype)

    def read(self, name: str) -> torch.Tensor:
        dtype = self.dtype(name)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(
                self.path, f"{brief(name)} to have a dtype that torch can hold", dtype
            )
        with _well_formed(self.path), self._archive.open(self._members[name].info) as file:
            array = npy.read_array(file, allow_pickle=False)
        return torch.from_numpy(np.asarray(array, array.dtype.newbyteorder("=")))

    def write(self, file: BinaryIO, edit: Edit) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, member in self._members.items():
                edited = edit(name)
                info = zipfile.ZipInfo(member.info.filename, member.info.date_time)
                info.compress_type = member.info.compress_type
                with archive.open(info, "w", force_zip64=True) as target:
                    if edited is None:
                        target.writelines(self._chunks(member))
                    else:
                        array = edited.detach().resolve_conj().resolve_neg().numpy()
                        npy.write_array(target, array, allow_pickle=False)

    def _chunks(self, member: Member) -> Iterator[bytes]:
        with _well_formed(self.path), self._archive.open(member.info) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def close(self) -> None:
        self._open.close()


@contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    """Whatever the parsers say about damaged bytes, as one kind of error."""
    try:
        with naming(path):
            yield
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise CheckpointError(path, "a sound .npz archive", brief(str(error))) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # A damaged offset is a seek before the file.
            raise
        raise CheckpointError(path, "a sound .npz archive", brief(str(error))) from error


def _name(info: zipfile.ZipInfo, path: Path) -> str:
    if not info.filename.endswith(SUFFIX):
        raise CheckpointError(path, f"members named *{SUFFIX}", brief(info.filename))
    check_name(info.filename, path)
    return info.filename.removesuffix(SUFFIX)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Member:
    with archive.open(info) as file:
        shape, dtype = _array_header(file, path, info.filename)
        expected = math.prod(shape) * dtype.itemsize + file.tell()
    if expected != info.file_size:
        raise CheckpointError(
            path, f"{brief(info.filename)} to take {expected} bytes", f"{info.file_size}"
        )
    return Member(info, shape, dtype)


def _array_header(
    file: IO[bytes], path: Path, name: str
) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = npy.read_magic(file)
    reader = _HEADER_READERS.get(version)
    if reader is None:
        raise CheckpointError(path, f"{brief(name)} in version 1.0 or 2.0 of .npy", f"{version}")
    shape, _, dtype = reader(file)
    if any(size < 0 for size in shape):
        raise CheckpointError(path, f"{brief(name)} to have sizes >= 0", f"shape {brief(shape)}")
    check_element_count(shape, path, name)
    if dtype.hasobject:
        raise CheckpointError(path, f"{brief(name)} to hold numbers", "pickled Python objects")
    return shape, dtype
