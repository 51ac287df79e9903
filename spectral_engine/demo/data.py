"""Fashion-MNIST, read from its idx files.

An idx file (http://yann.lecun.com/exdb/mnist, "the IDX file format") is a big-endian header, two
zero bytes, a type code, the number of dimensions and one 32-bit size a dimension, followed by the
entries in C order. Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747) is written in unsigned
bytes alone, so that is the one type read here. Files may be gzipped.

The 10,000 test images travel with the package. The 60,000 training images do not: only the script
that trains the demo's network needs them.
"""

import gzip
import math
import struct
import zlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]
Split = Literal["train", "test"]

#: Where the Debian package dataset-fashion-mnist puts the files.
DEFAULT_FOLDER = Path("/usr/share/datasets/fashion-mnist")
#: Mean and standard deviation of the training pixels, scaled to [0, 1].
PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_PREFIXES = {"train": "train", "test": "t10k"}
_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTES = b"\x00\x00\x08"
_DIMENSIONS = (b"\x01", b"\x02", b"\x03", b"\x04")
_CHUNK = 1 << 20


def read_idx(path: str | Path | Traversable) -> UInt8:
    """The array of unsigned bytes in an idx file.

    Args:
        path: the file, gzipped or not.

    Returns:
        The array, in memory of its own and writable.

    Raises:
        ValueError: names the file; a wrong magic number, another entry type, no entries, fewer or
            more bytes than the header announces, or a damaged gzip stream.
        OSError: the file cannot be opened.
    """
    source = Path(path) if isinstance(path, str) else path
    with source.open("rb") as raw:
        zipped = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        try:
            if zipped:
                with gzip.GzipFile(fileobj=raw) as stream:
                    return _parse(cast(IO[bytes], stream), source)
            return _parse(raw, source)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{source}: expected an intact gzip stream, found: {error}") from error


def _parse(stream: IO[bytes], source: Path | Traversable) -> UInt8:
    magic = stream.read(4)
    if magic[:3] != _UNSIGNED_BYTES or magic[3:] not in _DIMENSIONS:
        raise ValueError(
            f"{source}: expected the magic number of an idx file of unsigned bytes "
            f"(00 00 08, then 01 to 04 dimensions), found {magic.hex(' ') or 'an empty file'}"
        )
    dimensions = magic[3]
    header = stream.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise ValueError(
            f"{source}: expected a header of {4 + 4 * dimensions} bytes for {dimensions} "
            f"dimensions, found {4 + len(header)} bytes"
        )
    shape = struct.unpack(f">{dimensions}I", header)
    size = math.prod(shape)
    if size == 0:
        raise ValueError(f"{source}: expected at least one entry, found shape {shape}")
    # In chunks, so that what the file holds bounds what is allocated, whatever its header claims;
    # one byte past the end, so that excess shows and gzip verifies its checksum.
    body = bytearray()
    while chunk := stream.read(min(_CHUNK, size + 1 - len(body))):
        body += chunk
    if len(body) != size:
        found = f"{len(body)} bytes" if len(body) < size else "more bytes"
        raise ValueError(f"{source}: expected {size} entries for shape {shape}, found {found}")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def load_idx_folder(
    folder: str | Path | Traversable = DEFAULT_FOLDER, split: Split = "train"
) -> tuple[UInt8, UInt8]:
    """Images and labels of one split of an MNIST-style folder.

    Args:
        folder: with {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte, each with or
            without .gz.
        split: "train" or "test".

    Returns:
        Images (N, height, width) and labels (N,), of unsigned bytes.

    Raises:
        ValueError: an unknown split, or files that do not fit each other.
        FileNotFoundError: a file is missing; says how to get it.
    """
    if split not in _PREFIXES:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    root = Path(folder) if isinstance(folder, str) else folder
    images_file = _find(root, f"{_PREFIXES[split]}-images-idx3-ubyte")
    labels_file = _find(root, f"{_PREFIXES[split]}-labels-idx1-ubyte")
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.ndim != 3:
        raise ValueError(f"{images_file}: expected 3 dimensions, found shape {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{labels_file}: expected one label for each of {images.shape[0]} images, "
            f"found shape {labels.shape}"
        )
    return images, labels


def _find(folder: Path | Traversable, name: str) -> Path | Traversable:
    for candidate in (folder / f"{name}.gz", folder / name):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"no {name}.gz or {name} in {folder}; on Debian and Ubuntu `apt-get install "
        f"dataset-fashion-mnist` puts the files in {DEFAULT_FOLDER}, elsewhere download them from "
        "https://github.com/zalandoresearch/fashion-mnist and name their folder"
    )


def fashion_mnist_test() -> tuple[UInt8, UInt8]:
    """The 10,000 test images (10000, 28, 28) and their labels (10000,) that the package ships."""
    return load_idx_folder(files(__package__) / "assets", "test")


def to_tensors(images: UInt8, labels: UInt8) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels as a network takes them.

    Args:
        images: unsigned bytes of any shape.
        labels: unsigned bytes of any shape.

    Returns:
        float32 images, normalised by the mean and deviation of the training set's pixels whatever
        the split, and int64 labels; shapes are kept.
    """
    pixels = torch.from_numpy(images).to(torch.float32)
    return (pixels / 255 - PIXEL_MEAN) / PIXEL_STD, torch.from_numpy(labels).to(torch.int64)
