"""The demo's data and network: the idx reader, the shipped checkpoint, what a wheel carries."""

import gzip
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hatchling.build import build_wheel
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from spectral_engine.demo.data import fashion_mnist_test, load_idx_folder, read_idx, to_tensors
from spectral_engine.demo.lenet import LeNet300100, accuracy, load_pretrained, pretrained_metadata

ROOT = Path(__file__).parents[3]
ASSETS = ROOT / "spectral_engine" / "demo" / "assets"
IMAGES = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)
LABELS = np.array([7, 1], dtype=np.uint8)


def idx_bytes(array, code=0x08):
    """The idx file of an array, written from the format's description."""
    header = bytes((0, 0, code, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def write_folder(folder, images=IMAGES, labels=LABELS, prefix="train"):
    folder.joinpath(f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
    folder.joinpath(f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))


@settings(max_examples=40)
@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, max_side=7)), st.booleans())
def test_idx_round_trip(tmp_path_factory, array, zipped):
    """Catches sizes read little-endian or reversed, Fortran order, read-only results."""
    path = tmp_path_factory.mktemp("idx") / "array"
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if zipped else content)
    read = read_idx(path)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.uint8
    assert read.shape == array.shape
    assert read.flags.writeable


@settings(max_examples=60)
@given(st.data(), st.booleans())
def test_every_truncation_is_refused(tmp_path_factory, data, zipped):
    """Catches a short read taken for a smaller array, and gzip errors that escape unnamed."""
    content = gzip.compress(idx_bytes(IMAGES)) if zipped else idx_bytes(IMAGES)
    length = data.draw(st.integers(0, len(content) - 1))
    path = tmp_path_factory.mktemp("idx") / "cut-short"
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"cut-short: expected .* found"):
        read_idx(path)


@settings(max_examples=60)
@given(st.data())
def test_damaged_gzip_is_refused_or_harmless(tmp_path_factory, data):
    """Catches a checksum that is never verified: no flipped bit may change the array read."""
    content = bytearray(gzip.compress(idx_bytes(IMAGES)))
    content[data.draw(st.integers(2, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("idx") / "damaged"
    path.write_bytes(content)
    try:
        read, message = read_idx(path), None
    except ValueError as error:
        read, message = IMAGES, str(error)
    np.testing.assert_array_equal(read, IMAGES)
    assert message is None or "damaged: expected" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"\x89PNG\r\n\x1a\n", "magic number .* found 89 50 4e 47"),
        (idx_bytes(IMAGES, code=0x0D), "magic number .* found 00 00 0d 03"),
        (b"\x00\x00\x08\x00\x01", "magic number .* found 00 00 08 00"),
        (b"\x00\x00\x08\xff", "magic number .* found 00 00 08 ff"),
        (b"\x00\x00\x08\x03\x00\x00", "header of 16 bytes for 3 dimensions, found 6 bytes"),
        (idx_bytes(np.zeros((0, 28, 28), np.uint8)), r"at least one entry, found .*\(0, 28, 28\)"),
        (idx_bytes(IMAGES) + b"!", "30 entries .* found more bytes"),
        (idx_bytes(IMAGES)[:-4], "30 entries .* found 26 bytes"),
    ],
)
def test_wrong_files_are_named(tmp_path, content, message):
    """Catches other formats, other types and wrong lengths that are read as if they were images."""
    path = tmp_path / "wrong"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"wrong: expected .*{message}"):
        read_idx(path)


def test_a_lying_header_allocates_nothing(tmp_path):
    """Catches an allocation of the announced size: 2^96 entries, in a file of 20 bytes."""
    path = tmp_path / "huge"
    path.write_bytes(b"\x00\x00\x08\x03" + b"\xff" * 12 + bytes(4))
    with pytest.raises(ValueError, match=f"expected {(2**32 - 1) ** 3} entries"):
        read_idx(str(path))


def test_a_folder_is_read_with_and_without_gzip(tmp_path):
    """Catches train and test taken for each other, and a reader that insists on .gz."""
    write_folder(tmp_path)
    write_folder(tmp_path, IMAGES[:1], LABELS[:1], prefix="t10k")
    for split, count in (("train", 2), ("test", 1)):
        images, labels = load_idx_folder(tmp_path, split)
        np.testing.assert_array_equal(images, IMAGES[:count])
        np.testing.assert_array_equal(labels, LABELS[:count])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS[:1], r"labels.*one label for each of 2 images, found shape \(1,\)"),
        (IMAGES, LABELS[:, None], r"labels.*one label for each of 2 images, found shape \(2, 1\)"),
        (LABELS, LABELS, r"images.*expected 3 dimensions, found shape \(2,\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, images, labels, message):
    """Catches labels paired with the wrong images."""
    write_folder(tmp_path, images, labels)
    with pytest.raises(ValueError, match=message):
        load_idx_folder(str(tmp_path), "train")


def test_missing_files_say_where_to_get_them(tmp_path):
    """Catches a bare 'no such file', and a split that is silently taken for another."""
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        load_idx_folder(tmp_path)
    with pytest.raises(ValueError, match="split: expected 'train' or 'test', got 'validation'"):
        load_idx_folder(tmp_path, "validation")


def test_shipped_images():
    """Catches a damaged or exchanged asset: Fashion-MNIST's test set has 1,000 of each class."""
    images, labels = fashion_mnist_test()
    assert images.shape == (10_000, 28, 28)
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 1_000))


def test_tensors_are_normalised():
    """Catches a wrong scale, or uint8 arithmetic that wraps: mean 0 and deviation 1, to 1 %."""
    images, labels = to_tensors(*fashion_mnist_test())
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(float(images.mean())) < 0.01
    assert abs(float(images.std()) - 1) < 0.01


def test_shipped_network_reaches_its_accuracy():
    """Catches weights, images, normalisation or metadata that do not belong together."""
    metadata = pretrained_metadata()
    reached = accuracy(load_pretrained(), *to_tensors(*fashion_mnist_test()))
    assert abs(reached - metadata["test_accuracy"]) <= 0.001
    assert reached > 0.88


def test_loading_leaves_the_random_state_alone():
    """Catches a network that is initialised at random before its weights are loaded."""
    state = torch.random.get_rng_state()
    model = load_pretrained()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model.training
    assert [tuple(layer.weight.shape) for layer in (model.fc1, model.fc2, model.fc3)] == [
        (300, 784),
        (100, 300),
        (10, 100),
    ]


def test_each_load_is_a_copy():
    """Catches pruning one copy in place that prunes the next one too."""
    with torch.no_grad():
        load_pretrained().fc1.weight.zero_()
    assert load_pretrained().fc1.weight.count_nonzero() > 0


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_accuracy_counts_every_image_once(batch_size):
    """Catches a ragged last batch that is dropped, or a mean of batch means."""
    images = torch.eye(10)[[0, 1, 2, 3, 4, 5, 6]]
    labels = torch.tensor([0, 1, 2, 3, 4, 9, 9])
    assert math.isclose(accuracy(torch.nn.Identity(), images, labels, batch_size=batch_size), 5 / 7)


def test_accuracy_refuses_bad_input():
    """Catches labels cut to the images' length, 0/0, and a batch size that never ends."""
    images, model = torch.zeros(2, 28, 28), LeNet300100()
    with pytest.raises(ValueError, match=r"labels: .* got 3 labels for 2 images"):
        accuracy(model, images, torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels: .* got 0 labels for 0 images"):
        accuracy(model, images[:0], torch.zeros(0))
    with pytest.raises(ValueError, match="batch_size: expected at least 1; got 0"):
        accuracy(model, images, torch.zeros(2), batch_size=0)


def test_a_wheel_carries_the_assets(tmp_path, monkeypatch):
    """Catches a build that leaves out the data, its licence or the type markers."""
    monkeypatch.chdir(ROOT)
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        sizes = {entry.filename: entry.file_size for entry in wheel.infolist()}
    for asset in ASSETS.iterdir():
        assert sizes.get(f"spectral_engine/demo/assets/{asset.name}") == asset.stat().st_size
    assert {"spectral_engine/py.typed", "spectral_kernels/py.typed"} <= sizes.keys()
    licences = [name for name in sizes if ".dist-info/licenses/" in name]
    assert any(name.endswith("/LICENSE") for name in licences)
    assert any(name.endswith("/LICENSE-fashion-mnist.txt") for name in licences)
