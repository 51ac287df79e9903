"""Files of torch.save: where elements lie, who shares them, and files that claim too much."""

import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from spectral_engine.checkpoints import CheckpointError, open_checkpoint, rewrite

LEGACY = {"_use_new_zipfile_serialization": False}


def load(path):
    return torch.load(path, weights_only=True)


DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64]
VIEWS = {
    "whole": lambda t: t,
    "transposed": lambda t: t.mT,
    "rows": lambda t: t[1:],
    "columns": lambda t: t[:, 1:],
    "every second": lambda t: t[:, ::2],
    "scalar": lambda t: t.sum() if t.dtype != torch.bool else t.any(),
    "expanded": lambda t: t[:, :1].expand(-1, 3),
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "empty": lambda t: t[:0],
}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(VIEWS)), st.sampled_from(DTYPES)), max_size=5),
    st.booleans(),
    st.sampled_from([2, 4]),
)
def test_reads_what_torch_reads(spec, legacy, protocol):
    """Catches an offset, stride, dtype or class of a tensor understood otherwise than by torch."""
    state = {}
    for number, (view, dtype) in enumerate(spec):
        base = (torch.arange(12).reshape(3, 4) + number).to(dtype)
        state[f"t{number}"] = VIEWS[view](base)
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder) / "in.pt", Path(folder) / "out.pt"
        options = LEGACY if legacy else {}
        torch.save(state, path, pickle_protocol=protocol, **options)
        rewrite(path, copy, lambda name, tensor: tensor)
        reference = torch.load(path, weights_only=False)
        again = torch.load(copy, weights_only=False)
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.names == list(state)
            for name, tensor in reference.items():
                assert checkpoint.shape(name) == tensor.shape
                assert checkpoint.dtype(name) == tensor.dtype
                assert torch.equal(checkpoint.read(name), tensor)
                assert torch.equal(again[name], tensor)
                assert type(again[name]) is type(tensor)
                assert again[name].stride() == tensor.stride()
        if legacy:
            assert copy.read_bytes() == path.read_bytes()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=4),
    st.booleans(),
)
def test_edits_of_views_change_themselves_only(columns, legacy):
    """Catches an edit that lands in a neighbour of the same storage, and one of a part of another
    tensor's memory, which changes what was not asked for."""
    base = torch.arange(24.0).reshape(3, 8)
    state = {f"t{n}": base[:, start : start + width] for n, (start, width) in enumerate(columns)}
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder) / "in.pt", Path(folder) / "out.pt"
        torch.save(state, path, **(LEGACY if legacy else {}))
        asked = []
        rewrite(path, target, lambda name, tensor: asked.append(name) or tensor + 100)
        result = load(target)
    edited = set()
    for name, tensor in state.items():
        change = result[name] - tensor
        assert change.unique().numel() == 1
        if change.flatten()[0] == 100:
            edited.add(name)
        else:
            assert change.flatten()[0] == 0
    spans = {name: set(range(s, s + w)) for name, (s, w) in zip(state, columns, strict=True)}
    for name, span in spans.items():
        others = [other for other in spans.values() if other != span]
        free = all(span.isdisjoint(other) for other in others)
        assert (name in edited) == free
    assert len(asked) == len({frozenset(spans[name]) for name in edited})


def test_transposed_tie_is_one_tensor(tmp_path):
    """Catches a weight tied by transposition edited twice, or untied: the two would disagree."""
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"enc": weight, "dec": weight.T}, tmp_path / "in.pt")
    with open_checkpoint(tmp_path / "in.pt") as checkpoint:
        assert checkpoint.tied_to("dec") == "enc"
        assert torch.equal(checkpoint.read("dec"), weight.T)
    asked = []
    for suffix in (".pt", ".safetensors"):
        target = tmp_path / f"out{suffix}"
        rewrite(tmp_path / "in.pt", target, lambda name, t: asked.append(name) or 2 * t)
        result = load(target) if suffix == ".pt" else load_file(target)
        assert torch.equal(result["enc"], 2 * weight)
        assert torch.equal(result["dec"], 2 * weight.T)
    assert asked == ["enc", "enc"]
    tied = load(tmp_path / "out.pt")
    assert tied["enc"].data_ptr() == tied["dec"].data_ptr()


def test_what_cannot_be_edited_says_so(tmp_path):
    """Catches an expanded or a partly shared tensor edited, or left alone without a reason."""
    big = torch.arange(8.0)
    state = {"w": torch.ones(2, 2), "e": torch.ones(1).expand(3, 4), "long": big, "part": big[2:]}
    torch.save(state, tmp_path / "in.pt")
    with open_checkpoint(tmp_path / "in.pt") as checkpoint:
        reasons = {name: checkpoint.reason_to_keep(name) for name in checkpoint.names}
    assert reasons["w"] is None
    assert "expanded" in reasons["e"]
    assert "a part of its memory" in reasons["long"]
    assert reasons["long"] == reasons["part"]
    rewrite(tmp_path / "in.pt", tmp_path / "out.pt", lambda name, tensor: tensor + 1)
    result = load(tmp_path / "out.pt")
    assert result["w"].tolist() == [[2, 2], [2, 2]]
    assert torch.equal(result["e"], state["e"])
    with pytest.raises(ValueError, match=r"tensors that can be edited, found 'e': its elements sh"):
        rewrite(tmp_path / "in.pt", tmp_path / "no.pt", lambda n, t: t, select=["e", "w"])
    assert not (tmp_path / "no.pt").exists()


PEAKS = """
import re, sys, torch
from pathlib import Path
from spectral_engine.checkpoints import open_checkpoint, rewrite

def kib(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

for source in map(Path, sys.argv[1:]):
    Path("/proc/self/clear_refs").write_text("5")
    before = kib("VmRSS")
    try:
        with open_checkpoint(source) as checkpoint:
            for name in checkpoint.names:
                checkpoint.read(name)
        rewrite(source, source.with_stem("out-" + source.stem), lambda name, tensor: tensor)
        outcome = "read"
    except ValueError:
        outcome = "refused"
    print(outcome, kib("VmHWM") - before)
"""
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")


def peaks(*sources: Path) -> list[tuple[str, float]]:
    """Read and rewrite files in another process: whether each was read, and its peak in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, *sources], capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(outcome, int(kib) / 1024) for outcome, kib in lines]


@needs_proc
def test_one_tensor_at_a_time(tmp_path):
    """Catches a torch file held in memory whole: twelve tensors of 16 MiB take one of them."""
    state = {f"t{n}": torch.full((4, 1 << 20), float(n)) for n in range(12)}
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.pt", **LEGACY)
    for outcome, mib in peaks(tmp_path / "zip.pt", tmp_path / "legacy.pt"):
        assert outcome == "read"
        assert mib < 2 * 16 + 24
    for name in ("zip", "legacy"):
        assert torch.equal(load(tmp_path / f"out-{name}.pt")["t11"], state["t11"])


def pickled_archive(text: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", text)
        archive.writestr("a/data/0", bytes(4))
    return buffer.getvalue()


def saved(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def deflated(data: bytes, claim: int | None = None) -> bytes:
    """An archive packed anew; with `claim`, the size of the last storage is stated as that."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as stored,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
        if claim is not None:
            packed.getinfo("archive/data/0").file_size = claim
    return buffer.getvalue()


BIG = 3_000_000_000
TENSOR_CALL = b"\x80\x02}X\x01\0\0\0actorch\nTensor\n(K\x02J\0\0\0\x40tRs."
BOMBS = {
    "expanded": saved({"w": torch.ones(1).expand(20000, 20000)}),
    "absurd shape": saved({"w": torch.ones(1).expand(2**20, 2**20)}),
    "overlapping strides": saved({"w": torch.ones(2**13).as_strided((2**12, 2**12), (1, 1))}),
    "legacy expanded": saved({"w": torch.ones(1).expand(20000, 20000)}, **LEGACY),
    "torch.Tensor": pickled_archive(TENSOR_CALL),
    "bytearray": pickled_archive(b"\x80\x02cbuiltins\nbytearray\nJ\0\x5e\xd0\x7f\x85R."),
    "large memo index": pickled_archive(b"\x80\x02}r\xff\xff\xff\xff."),
    "string past the end": pickled_archive(b"\x80\x02X\xff\xff\xff\xffabc."),
    "array past the end": pickled_archive(b"\x80\x05\x96\0\0\0\0\x01\0\0\0."),
    "tuples in tuples": pickled_archive(b"\x80\x02})q\0" + b"0h\0h\0\x86q\0" * 60 + b"K\1s."),
    "claim of deflate": deflated(saved({"w": torch.ones(4)}), claim=BIG),
}


@needs_proc
def test_small_files_stay_small(tmp_path):
    """Catches memory, disk or time taken by what a file claims and does not hold."""
    paths = [tmp_path / f"{number}.pt" for number in range(len(BOMBS))]
    for path, data in zip(paths, BOMBS.values(), strict=True):
        assert len(data) < 40_000
        path.write_bytes(data)
    for case, path, (outcome, mib) in zip(BOMBS, paths, peaks(*paths), strict=True):
        assert mib < 24, case
        assert outcome == ("read" if case == "large memo index" else "refused"), case
        assert path.with_stem("out-" + path.stem).exists() == (outcome == "read"), case


def test_pickle_past_its_storage(tmp_path):
    """Catches a tensor that reads what lies behind its storage in the file."""
    data = saved({"w": torch.ones(4)})
    (tmp_path / "in.pt").write_bytes(data.replace(b"K\x04\x85", b"K\x05\x85", 1))
    with pytest.raises(
        CheckpointError, match=r"within the 16 bytes of its storage, found shape \(5"
    ):
        open_checkpoint(tmp_path / "in.pt")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_file_cut_while_it_is_read(legacy, tmp_path):
    """Catches SIGBUS: a mapped file that another process truncates kills the reader."""
    path = tmp_path / "in.pt"
    torch.save({"a": torch.ones(1 << 20), "b": torch.ones(4)}, path, **(LEGACY if legacy else {}))
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(8192)
        with pytest.raises(CheckpointError, match="more bytes, found"):
            checkpoint.read("a")


def test_archive_without_checksums(tmp_path):
    """Catches a file refused that torch wrote without checksums, as it can be told to."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "in.pt")
    finally:
        torch.serialization.set_crc32_options(before)
    rewrite(tmp_path / "in.pt", tmp_path / "out.pt", lambda name, tensor: 2 * tensor)
    assert load(tmp_path / "out.pt")["a"].tolist() == [2, 2, 2]
    with zipfile.ZipFile(tmp_path / "out.pt") as archive:
        assert archive.testzip() is None


def test_written_archive_can_be_mapped(tmp_path):
    """Catches storages that are not aligned, which torch maps and computes on slowly or not."""
    torch.save({f"t{n}": torch.ones(n) for n in range(1, 6)}, tmp_path / "in.pt")
    rewrite(tmp_path / "in.pt", tmp_path / "out.pt", lambda name, tensor: tensor + 1)
    mapped = torch.load(tmp_path / "out.pt", mmap=True, weights_only=True)
    assert {tensor.data_ptr() % 64 for tensor in mapped.values()} == {0}
    assert mapped["t5"].tolist() == [2] * 5
