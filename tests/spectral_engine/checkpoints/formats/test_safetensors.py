"""The safetensors reader and rewriter: exact round trips, and every way a file can lie."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spectral_engine.checkpoints import CheckpointError, open_checkpoint, rewrite

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
]
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)


def of_bytes(shape, dtype, seed):
    """A tensor whose bytes are random; those of a bool are 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * dtype.itemsize
    top = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, top, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def raw(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


TENSORS = st.dictionaries(
    NAMES,
    st.builds(of_bytes, SHAPES, st.sampled_from(DTYPES), st.integers(0, 1000)),
    max_size=5,
)


def write_raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with any header at all, in JSON unless given as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(shape=(1,), offsets=(0, 4), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@settings(deadline=None, max_examples=40)
@given(tensors=TENSORS, metadata=st.dictionaries(NAMES, NAMES, max_size=2))
def test_reads_what_the_library_wrote(tensors, metadata):
    """Catches a wrong offset, dtype, shape, order or metadata for any dtype, scalar or empty."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.safetensors"
        save_file(tensors, path, metadata=metadata or None)
        with open_checkpoint(path) as checkpoint, safe_open(path, "pt") as reference:
            assert set(checkpoint.names) == set(tensors)
            # The library leaves the order of empty tensors, which share an offset, to chance.
            held = [name for name in checkpoint.names if tensors[name].numel()]
            assert held == [name for name in reference.offset_keys() if name in held]
            assert checkpoint.metadata == metadata
            for name, tensor in tensors.items():
                assert checkpoint.shape(name) == tuple(tensor.shape)
                assert checkpoint.dtype(name) == tensor.dtype
                read = checkpoint.read(name)
                assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
                assert raw(read) == raw(tensor)


@settings(deadline=None, max_examples=40)
@given(tensors=TENSORS, metadata=st.dictionaries(NAMES, NAMES, max_size=2), keep=st.booleans())
def test_identity_is_byte_identical(tensors, metadata, keep):
    """Catches a header written anew, or data moved, by either path: kept bytes and edited bytes."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        save_file(tensors, source, metadata=metadata or None)
        rewrite(source, target, lambda name, tensor: None if keep else tensor)
        assert target.read_bytes() == source.read_bytes()


@settings(deadline=None, max_examples=25)
@given(tensors=TENSORS, data=st.data())
def test_only_edited_tensors_change(tensors, data):
    """Catches an edit that lands in a neighbour, and a non-contiguous result stored in its
    memory order."""
    chosen = set(data.draw(st.sets(st.sampled_from(sorted(tensors)))) if tensors else [])

    def transform(name, tensor):
        if name not in chosen:
            tensor.zero_()  # None keeps the stored bytes, whatever became of the copy.
            return None
        flipped = 1 - tensor.view(torch.uint8) if tensor.dim() and tensor.numel() else tensor
        changed = flipped.view(tensor.dtype)
        return changed.mT.contiguous().mT if changed.dim() > 1 else changed

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.safetensors", Path(folder) / "out.safetensors"
        save_file(tensors, source)
        rewrite(source, target, transform)
        result = load_file(target)
    for name, tensor in tensors.items():
        expected = transform(name, tensor.clone()) if name in chosen else tensor
        assert raw(result[name]) == raw(expected)


def test_select_asks_for_these_names_only(tmp_path):
    """Catches a `select` that is ignored, and one that hides a misspelt name."""
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(3)}, source)
    asked = []
    rewrite(source, target, lambda name, tensor: asked.append(name) or 2 * tensor, select=["b"])
    assert asked == ["b"]
    assert load_file(target)["a"].tolist() == [1, 1, 1]
    assert load_file(target)["b"].tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"select: expected names .* found \['c'\]"):
        rewrite(source, target, lambda name, tensor: None, select=["c"], force=True)


def test_dtype_that_torch_lacks_is_kept(tmp_path):
    """Catches a packed dtype that stops a rewrite, or is handed on as something else."""
    source = write_raw(
        tmp_path / "in.safetensors",
        {"f4": entry((8,), (0, 4), "F4"), "f32": entry((1,), (4, 8))},
        b"\x12\x34\x56\x78" + bytes(4),
    )
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.dtype("f4") == "F4"
        assert checkpoint.shape("f4") == (8,)
        with pytest.raises(CheckpointError, match="'f4' to have a dtype that torch can hold"):
            checkpoint.read("f4")
    rewrite(source, tmp_path / "out.safetensors", lambda name, tensor: tensor + 1)
    assert (tmp_path / "out.safetensors").read_bytes()[-8:-4] == b"\x12\x34\x56\x78"


GOOD = {"a": entry()}
ONE = json.dumps(entry())
HOSTILE = {
    "empty file": (b"", "at least 8 bytes, found 0"),
    "short length": (b"\x01\x00", "at least 8 bytes, found 2"),
    "length past the end": ((GOOD, bytes(4), 5000), "a header of 5000 bytes, found"),
    "length of 2^64 - 1": ((GOOD, bytes(4), 2**64 - 1), "at most 100000000 bytes, found 1844"),
    "not JSON": ((b"{'a'}",), "the header in JSON"),
    "not UTF-8": ((b'{"\xff": 1}',), "the header in JSON"),
    "nested beyond recursion": ((b'{"a":' + b"[" * 10**6,), "the header in JSON"),
    "not an object": ((b"[1]",), r"the header to be a JSON object, found \[1\]"),
    "no dtype": (({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "'a' to give dtype"),
    "not an entry": (({"a": 3},), "'a' to give dtype, shape, data_offsets, found 3"),
    "unknown dtype": (({"a": entry(dtype="F31")}, bytes(4)), "dtype of the format, found 'F31'"),
    "dtype no string": (({"a": entry(dtype=7)}, bytes(4)), "dtype of the format, found 7"),
    "negative size": (({"a": entry((-1,))}, bytes(4)), r"integers >= 0, found \[-1\]"),
    "size no integer": (({"a": entry((1.0,))}, bytes(4)), r"integers >= 0, found \[1.0\]"),
    "size a bool": (({"a": entry((True,))}, bytes(4)), r"integers >= 0, found \[True\]"),
    "shape no list": (
        ({"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}, bytes(4)),
        "integers >= 0, found '1'",
    ),
    "shape past 64 bits": (({"a": entry((2**40, 2**40))}, bytes(4)), "fewer than 2.63 elements"),
    "empty shape past 64 bits": (
        ({"a": entry((0, 2**40, 2**40), (0, 0))},),
        "fewer than 2.63 elements",
    ),
    "shape of a huge integer": (
        (b'{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,4]}}' % (b"9" * 4000), bytes(4)),
        "fewer than 2.63 elements",
    ),
    "shape wraps to the size": (({"a": entry((2**62 + 1,))}, bytes(4)), "'a' to take"),
    "too few bytes": (({"a": entry((2,))}, bytes(4)), "take 8 bytes for F32 .* found 4 bytes"),
    "half a byte": (({"a": entry((1,), (0, 1), "F4")}, bytes(1)), "take 0.5 bytes"),
    "begin after end": (({"a": entry((1,), (4, 0))}, bytes(4)), r"begin <= end, found \[4, 0\]"),
    "one offset": (({"a": entry((1,), (4,))}, bytes(4)), r"begin <= end, found \[4\]"),
    "negative offset": (({"a": entry((1,), (-4, 0))}, bytes(4)), r"found \[-4, 0\]"),
    "overlap": (
        ({"a": entry(), "b": entry((1,), (2, 6))}, bytes(6)),
        "'b' to start at byte 4 of the data, without overlap or hole, found 2",
    ),
    "same bytes twice": (({"a": entry(), "b": entry()}, bytes(4)), "'b' to start at byte 4"),
    "hole": (({"a": entry(), "b": entry((1,), (8, 12))}, bytes(12)), "start at byte 4 .* found 8"),
    "hole in front": (({"a": entry((1,), (4, 8))}, bytes(8)), "start at byte 0 .* found 4"),
    "data cut": (({"a": entry()}, bytes(3)), "4 bytes of data, found 3"),
    "data left over": (({"a": entry()}, bytes(5)), "4 bytes of data, found 5"),
    "same name twice": (
        (f'{{"a":{ONE},"a":{ONE}}}'.encode(), bytes(4)),
        "each name once in the header, found 'a' 2 times",
    ),
    "same key twice": (
        (b'{"a":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "found 'shape' 2 times",
    ),
    "metadata no object": (({"__metadata__": 3},), "__metadata__ to be a JSON object, found 3"),
    "metadata no string": (({"__metadata__": {"k": 3}},), "metadata 'k' to be a string, found 3"),
    "half a surrogate pair": (
        (b'{"\\ud800":' + ONE.encode() + b"}", bytes(4)),
        "tensor names in valid Unicode",
    ),
    "git-lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548118077\n",
        "a git-lfs pointer to them; `git lfs pull` fetches",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file_is_refused(case, tmp_path):
    """Catches a lie that is believed: read out of bounds, two tensors in one place, a huge
    allocation. The message names the file, and a rewrite leaves nothing behind."""
    content, message = HOSTILE[case]
    path = tmp_path / "bad.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_raw(path, *content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    with pytest.raises(CheckpointError, match=message):
        rewrite(path, tmp_path / "out.safetensors", lambda name, tensor: tensor)
    assert os.listdir(tmp_path) == [path.name]


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, 200), flips=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 255))))
def test_damaged_file_never_crashes(cut, flips):
    """Catches an exception of another kind than the reader promises, on any damage."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.safetensors"
        save_file({"a": torch.ones(3, 2), "b": torch.ones(4, dtype=torch.bfloat16)}, path)
        damaged = bytearray(path.read_bytes()[: 200 - cut or None])
        for position, value in flips:
            if position < len(damaged):
                damaged[position] ^= value
        path.write_bytes(damaged)
        try:
            with open_checkpoint(path) as checkpoint:
                for name in checkpoint.names:
                    checkpoint.read(name)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_file_that_shrinks_while_open(tmp_path):
    """Catches a short read handed out as a tensor with rubbish at its end."""
    path = tmp_path / "in.safetensors"
    save_file({"a": torch.ones(100_000)}, path)
    with open_checkpoint(path) as checkpoint:
        os.truncate(path, 1000)
        with pytest.raises(CheckpointError, match="400000 more bytes, found"):
            checkpoint.read("a")


def test_no_regular_file(tmp_path):
    """Catches a read that waits for ever on a pipe."""
    os.mkfifo(tmp_path / "in.safetensors")
    with pytest.raises(CheckpointError, match="a regular file, found p"):
        open_checkpoint(tmp_path / "in.safetensors")


PEAK = """
import re, sys, torch
from pathlib import Path
from spectral_engine.checkpoints import rewrite

def kib(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew, at what is resident now.
before = kib("VmRSS")
if sys.argv[3] == "kept":
    rewrite(sys.argv[1], sys.argv[2], lambda name, tensor: tensor, select=[])
else:
    rewrite(sys.argv[1], sys.argv[2], lambda name, tensor: tensor.neg_())
print(kib("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize(("mode", "bound_mib"), [("kept", 24), ("edited", 48 + 24)])
def test_peak_memory_is_one_tensor(mode, bound_mib, tmp_path):
    """Catches a rewriter that holds the file or two tensors of 48 MiB at once, or loads a tensor
    that is kept. 24 MiB are left to the chunk, the allocator and the pages of the code."""
    size, count = 48 << 20, 3
    header = {f"t{i}": entry((size // 4,), (i * size, (i + 1) * size)) for i in range(count)}
    source = write_raw(tmp_path / "in.safetensors", header)
    os.truncate(source, source.stat().st_size + size * count)
    arguments = [sys.executable, "-c", PEAK, source, tmp_path / "out.safetensors", mode]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1024 < bound_mib
    assert (tmp_path / "out.safetensors").stat().st_size == source.stat().st_size
