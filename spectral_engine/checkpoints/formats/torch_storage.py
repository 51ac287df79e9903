"""The two containers of `torch.save`: a zip archive, and the run of pickles before torch 1.6.

    zip       NAME/data.pkl, NAME/data/KEY for each storage, a few small records
    legacy    magic number, version and system as pickles; the state; the list of keys; then for
              each key 8 bytes, its count of elements, and the elements

Either is read by offset: the pickle is taken apart, never run, and a storage is read when it is
asked for. A file is written again by copying its pickle and its small records as they are, with
the bytes of the storages as the caller hands them out, so that everything beside the tensors is
kept by construction, and what shares a storage still shares it.

The checksums of a stored archive are not compared: torch can be told to leave them out.
"""

import io
import sys
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, BinaryIO, cast

from .base import CheckpointError, brief, naming
from .torch_pickle import EXPECTED, Unpickled
from .torch_tensors import Storage
from .zip_archive import aligned_member, checked_members, data_start

CHUNK = 1 << 22
#: The bound on a pickle that is packed; a stored one is bounded by the file.
MAX_PACKED_PICKLE = 100_000_000
ZIP_MAGIC = b"PK\3\4"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
#: Beyond this size a member of the archive is written with 64-bit sizes.
_LARGE = 1 << 30
#: The bytes of a legacy storage's count of elements.
_COUNT = 8
_LONGEST_LINE = 1 << 16

Buffer = bytes | memoryview
Content = Callable[[str], Iterable[Buffer]]


class StorageFile(ABC):
    """A container of torch.save, opened.

    Attributes:
        unpickled: its object, taken apart.
        sizes: the bytes of each storage, in the order in which the file holds them.
    """

    unpickled: Unpickled
    sizes: dict[str, int]

    @abstractmethod
    def fill(self, key: str, start: int, buffer: memoryview) -> None:
        """Read bytes of a storage, from `start` on, into a buffer."""

    @abstractmethod
    def write(self, target: BinaryIO, content: Content) -> None:
        """Write the container to an empty file, its storages with the bytes of `content(key)`."""

    def copy(self, key: str, start: int, end: int) -> Iterable[Buffer]:
        """Yield bytes [start, end) of a storage in chunks, each valid until the next one."""
        chunk = memoryview(bytearray(max(0, min(CHUNK, end - start))))
        for position in range(start, end, CHUNK):
            part = chunk[: min(CHUNK, end - position)]
            self.fill(key, position, part)
            yield part

    def _check_sizes(self, storages: Iterable[Storage], path: Path) -> None:
        for storage in storages:
            if storage.size > self.sizes.get(storage.key, 0):
                found = self.sizes.get(storage.key)
                raise CheckpointError(
                    path,
                    f"storage {brief(storage.key)} of {storage.size} bytes",
                    "none" if found is None else f"{found} bytes",
                )


def open_storage_file(file: BinaryIO, size: int, path: Path) -> StorageFile:
    """Open either container of torch.save.

    Args:
        file: the file, open to read; its owner closes it.
        size: of the file, in bytes.
        path: for the errors.
    """
    zipped = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    file.seek(0)
    return _ZipFile(file, path) if zipped else _LegacyFile(file, size, path)


class _ZipFile(StorageFile):
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._archive = zipfile.ZipFile(file)
        self._infos = checked_members(self._archive, path)
        root = self._infos[0].filename.partition("/")[0] if self._infos else ""
        by_name = {info.filename: info for info in self._infos}
        if f"{root}/constants.pkl" in by_name:
            raise CheckpointError(path, EXPECTED, "a TorchScript archive")
        if f"{root}/data.pkl" not in by_name:
            raise CheckpointError(path, EXPECTED, "a zip archive without data.pkl")
        prefix = f"{root}/data/"
        self._records = {
            name.removeprefix(prefix): info
            for name, info in by_name.items()
            if name.startswith(prefix)
        }
        self.sizes = {key: info.file_size for key, info in self._records.items()}
        self._starts = {key: data_start(file, info, path) for key, info in self._records.items()}
        self._stream: tuple[str, int, IO[bytes]] | None = None
        self._check_byte_order(by_name.get(f"{root}/byteorder"))
        pickled = self._read_small(by_name[f"{root}/data.pkl"])
        self.unpickled = Unpickled(io.BytesIO(pickled), path)
        self._check_sizes((tensor.storage for tensor in self.unpickled.tensors), path)

    def _check_byte_order(self, info: zipfile.ZipInfo | None) -> None:
        order = self._read_small(info) if info else sys.byteorder.encode()
        if order != sys.byteorder.encode():
            raise CheckpointError(
                self._path,
                f"storages in {sys.byteorder}-endian order (torch.load and torch.save convert)",
                brief(order),
            )

    def _read_small(self, info: zipfile.ZipInfo) -> bytes:
        if info.compress_type == zipfile.ZIP_STORED:
            self._file.seek(data_start(self._file, info, self._path))
            return self._file.read(info.file_size)
        if info.file_size > MAX_PACKED_PICKLE:
            raise CheckpointError(
                self._path,
                f"{brief(info.filename)} to unpack to at most {MAX_PACKED_PICKLE} bytes",
                f"{info.file_size}",
            )
        return self._archive.read(info)

    def fill(self, key: str, start: int, buffer: memoryview) -> None:
        if self._records[key].compress_type == zipfile.ZIP_STORED:
            with naming(self._path):
                self._file.seek(self._starts[key] + start)
                fill(buffer, self._file, self._path)
            return
        try:
            stream = self._unpacking(key, start)
            fill(buffer, stream, self._path)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            found = brief(str(error))
            raise CheckpointError(self._path, f"storage {brief(key)} to unpack", found) from error
        self._stream = key, start + len(buffer), stream

    def _unpacking(self, key: str, start: int) -> IO[bytes]:
        """A packed storage from `start` on: the stream left by the last read if it leads there."""
        if self._stream is not None and self._stream[0] == key and self._stream[1] <= start:
            stream = self._stream[2]
        else:
            stream = self._archive.open(self._records[key])
        stream.seek(start)
        return stream

    def write(self, target: BinaryIO, content: Content) -> None:
        keys = {info.filename: key for key, info in self._records.items()}
        with zipfile.ZipFile(target, "w") as archive:
            for info in self._infos:
                large = info.file_size > _LARGE
                member = aligned_member(info, target.tell(), large=large)
                key = keys.get(info.filename)
                with archive.open(member, "w", force_zip64=large) as output:
                    chunks = [self._read_small(info)] if key is None else content(key)
                    for chunk in chunks:
                        output.write(chunk)


class _LegacyFile(StorageFile):
    def __init__(self, file: BinaryIO, size: int, path: Path) -> None:
        self._file, self._path = file, path
        bounded = cast(BinaryIO, _Bounded(file, size))  # It has what pickletools asks for.
        try:
            magic = Unpickled(bounded, path).value
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(path, EXPECTED, "neither a zip archive nor a pickle") from error
        if magic != _LEGACY_MAGIC or Unpickled(bounded, path).value != _LEGACY_VERSION:
            raise CheckpointError(path, EXPECTED, f"a pickle of {brief(magic)}")
        Unpickled(bounded, path)  # The system that wrote it: storages are little-endian on all.
        self.unpickled = Unpickled(bounded, path)
        storages = {tensor.storage.key: tensor.storage for tensor in self.unpickled.tensors}
        itemsizes = {storage.key: storage.dtype.itemsize for storage in self.unpickled.storages}
        keys = Unpickled(bounded, path).value
        if not isinstance(keys, list):
            raise CheckpointError(path, "a list of storages", brief(keys))
        self._head = position = file.tell()
        self._starts, self.sizes = {}, {}
        for item in keys:
            key = item.decode("latin-1") if isinstance(item, bytes) else str(item)
            file.seek(position)
            count = int.from_bytes(file.read(_COUNT), "little")
            self._starts[key] = position + _COUNT
            self.sizes[key] = count * itemsizes.get(key, 1)
            position = self._starts[key] + self.sizes[key]
            if position > size:
                raise CheckpointError(
                    path, f"storage {brief(key)} to end by byte {size}", f"{position}"
                )
        self._check_sizes(storages.values(), path)

    def fill(self, key: str, start: int, buffer: memoryview) -> None:
        with naming(self._path):
            self._file.seek(self._starts[key] + start)
            fill(buffer, self._file, self._path)

    def write(self, target: BinaryIO, content: Content) -> None:
        self._file.seek(0)
        target.write(self._file.read(self._head))
        for key, start in self._starts.items():
            self._file.seek(start - _COUNT)
            target.write(self._file.read(_COUNT))
            for chunk in content(key):
                target.write(chunk)


class _Bounded:
    """A file that is never asked for more bytes than it has left, nor for endless lines."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._source, self._size = file, size

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._source.tell()
        return self._source.read(left if size < 0 else min(size, left))

    def readline(self) -> bytes:
        return self._source.readline(_LONGEST_LINE)

    def tell(self) -> int:
        return self._source.tell()


def fill(buffer: memoryview, file: IO[bytes], path: Path) -> None:
    """Read exactly as many bytes as a buffer holds, in chunks; CheckpointError at the end."""
    for position in range(0, len(buffer), CHUNK):
        part = buffer[position : position + CHUNK]
        data = file.read(len(part))
        if len(data) < len(part):
            raise CheckpointError(path, f"{len(part)} more bytes", f"{len(data)}")
        part[:] = data
