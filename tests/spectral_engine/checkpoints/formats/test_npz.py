"""NumPy archives: read lazily, never unpickled, converted to safetensors."""

import copy
import io
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from spectral_engine.checkpoints import CheckpointError, open_checkpoint, rewrite

ARRAYS = {
    "w": np.arange(6, dtype=">f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.array(3, dtype=np.int64),
    "empty": np.zeros((0, 2), dtype=np.float16),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_round_trip(save, tmp_path):
    """Catches a byte order, memory order, scalar or compression mishandled."""
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    save(source, **ARRAYS)
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.names == list(ARRAYS)
        for name, array in ARRAYS.items():
            read = checkpoint.read(name)
            assert checkpoint.shape(name) == array.shape == tuple(read.shape)
            assert checkpoint.dtype(name) == read.dtype
            assert read.tolist() == array.tolist()
    rewrite(source, target, lambda name, tensor: 2 * tensor if name == "w" else None)
    with np.load(target, allow_pickle=False) as result, zipfile.ZipFile(target) as archive:
        assert result.files == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert result[name].tolist() == ((2 if name == "w" else 1) * array).tolist()
        expected = zipfile.ZIP_STORED if save is np.savez else zipfile.ZIP_DEFLATED
        assert {info.compress_type for info in archive.infolist()} == {expected}
    rewrite(source, tmp_path / "out.safetensors", lambda name, tensor: None)
    converted = load_file(tmp_path / "out.safetensors")
    for name, array in ARRAYS.items():
        assert converted[name].shape == array.shape
        assert converted[name].tolist() == array.tolist()


def npz(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + data


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


GOOD = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", bytes(4))
SHAPED = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"
BAD = {
    "not a zip": (b"hello", "a sound .npz archive, found 'File is not a zip file'"),
    "cut": (npz(("a.npy", GOOD))[:60], "a sound .npz archive"),
    "pickle": (npz(("a.npy", pickled())), "'a.npy' to hold numbers, found pickled Python objects"),
    "other member": (npz(("a.txt", b"")), r"members named \*.npy, found 'a.txt'"),
    "no header": (npz(("a.npy", b"hello, world")), "a sound .npz archive"),
    "version": (npz(("a.npy", npy("{}", version=b"\7\0"))), "'a.npy' in version|sound"),
    "bad header": (npz(("a.npy", npy("{'descr': "))), "a sound .npz archive"),
    "too large": (npz(("a.npy", npy(SHAPED % "(9,)", bytes(4)))), "'a.npy' to take .* bytes"),
    "negative": (npz(("a.npy", npy(SHAPED % "(-1, -1)", bytes(4)))), r"sizes >= 0, found shape"),
    "past 64 bits": (
        npz(("a.npy", npy(SHAPED % "(0, 2**99)".replace("2**99", str(2**99))))),
        "2.63",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_archive(case, tmp_path):
    """Catches a pickle loaded, an allocation that the file does not back, a bare internal error."""
    data, message = BAD[case]
    (tmp_path / "in.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path / "in.npz")
    assert str(tmp_path / "in.npz") in str(caught.value)


def bomb(method: int) -> bytes:
    """256 MiB of zeros in a few hundred kilobytes at most."""
    data = npy(SHAPED % f"({1 << 26},)", bytes(1 << 28))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("w.npy", data)
    return buffer.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_archive_is_not_unpacked_when_it_is_opened(method, tmp_path):
    """Catches a packed member expanded whole to read its header: 2.5 KB took 6 GiB."""
    (tmp_path / "in.npz").write_bytes(bomb(method))
    tracemalloc.start()
    try:
        if method == zipfile.ZIP_DEFLATED:
            with open_checkpoint(tmp_path / "in.npz") as checkpoint:
                assert checkpoint.shape("w") == (1 << 26,)
        else:
            with pytest.raises(CheckpointError, match=r"'w.npy' stored or deflated, found packed"):
                open_checkpoint(tmp_path / "in.npz")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def renumbered(**claims: int) -> bytes:
    """An archive of one array whose directory claims other sizes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy(SHAPED % f"({1 << 30},)", bytes(99)))
        for field, value in claims.items():
            setattr(archive.getinfo("a.npy"), field, value)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"file_size": 2**32 + 128}, "'a.npy' to hold at most"),
        ({"compress_size": 2**31, "file_size": 2**31}, "'a.npy' to end before byte"),
        ({"flag_bits": 1}, "it is encrypted"),
    ],
)
def test_directory_that_claims_too_much(claims, message, tmp_path):
    """Catches an array allocated for a size that the packed bytes cannot hold."""
    (tmp_path / "in.npz").write_bytes(renumbered(**claims))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "in.npz")


def test_members_in_one_place(tmp_path):
    """Catches an archive whose members are all the same packed bytes, counted many times."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", GOOD)
        twin = copy.copy(archive.getinfo("a.npy"))
        twin.filename = "b.npy"
        archive.filelist.append(twin)
    (tmp_path / "in.npz").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="to end before byte 0"):
        open_checkpoint(tmp_path / "in.npz")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_same_name_twice(tmp_path):
    """Catches the first of two arrays of one name lost without a word."""
    (tmp_path / "in.npz").write_bytes(npz(("a.npy", GOOD), ("a.npy", GOOD)))
    with pytest.raises(CheckpointError, match="each name once, found 2 members"):
        open_checkpoint(tmp_path / "in.npz")


def test_text_is_kept(tmp_path):
    """Catches an array of strings that stops a rewrite."""
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(source, words=np.array(["a", "b"]), w=np.ones(2))
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.dtype("words") == "<U1"
        with pytest.raises(CheckpointError, match="'words' to have a dtype that torch can hold"):
            checkpoint.read("words")
    rewrite(source, target, lambda name, tensor: 2 * tensor)
    with np.load(target, allow_pickle=False) as result:
        assert result["words"].tolist() == ["a", "b"]
        assert result["w"].tolist() == [2, 2]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4),
    st.sampled_from([np.savez, np.savez_compressed]),
)
@pytest.mark.filterwarnings("ignore:Reading `.npy`", "ignore:Duplicate name")
def test_damaged_archive_never_crashes(flips, save):
    """Catches an exception of another kind than the reader promises, on any damage."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.npz"
        save(path, a=np.arange(5), b=np.ones(3))
        damaged = bytearray(path.read_bytes())
        for place, value in flips:
            damaged[int(place * (len(damaged) - 1))] ^= value
        path.write_bytes(damaged)
        try:
            with open_checkpoint(path) as checkpoint:
                for name in checkpoint.names:
                    if isinstance(checkpoint.dtype(name), torch.dtype):
                        checkpoint.read(name)
            rewrite(path, Path(folder) / "out.npz", lambda name, tensor: None)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
