"""Files of torch.save: read without running code, ties kept, converted to safetensors."""

import io
import os
import pickle
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from spectral_engine.checkpoints import CheckpointError, open_checkpoint, rewrite


def double(name, tensor):
    return 2 * tensor


def load(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_container_is_kept(key, modern, tmp_path):
    """Catches a wrapper, an optimizer state, or the version metadata of a state dict lost."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = model.state_dict()
    container = state if key is None else {"epoch": 3, key: state, "optimizer": {"lr": [0.1]}}
    source, target = tmp_path / "in.pt", tmp_path / "out.pth"
    torch.save(container, source, _use_new_zipfile_serialization=modern)
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.names == list(state)
        assert checkpoint.metadata == {}
        for name, tensor in state.items():
            assert checkpoint.shape(name) == tuple(tensor.shape)
            assert checkpoint.dtype(name) == tensor.dtype
            assert torch.equal(checkpoint.read(name), tensor)
    rewrite(source, target, lambda name, tensor: 2 * tensor if tensor.dim() == 2 else None)
    result = load(target)
    if key is not None:
        assert list(result) == list(container)
        assert (result["epoch"], result["optimizer"]) == (3, {"lr": [0.1]})
        result = result[key]
    assert isinstance(result, OrderedDict)
    assert list(result) == list(state)
    assert result._metadata == state._metadata
    assert torch.equal(result["0.weight"], 2 * state["0.weight"])
    assert torch.equal(result["0.bias"], state["0.bias"])
    torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).load_state_dict(result)


def test_compressed_archive(tmp_path):
    """Catches compressed bytes taken for the tensor: torch maps an archive without looking."""
    tensor = torch.randint(0, 256, (1000,), dtype=torch.uint8)
    torch.save({"a": tensor}, tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "in.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with open_checkpoint(tmp_path / "in.pt") as checkpoint:
        assert torch.equal(checkpoint.read("a"), tensor)


def test_reading_does_not_change_the_file(tmp_path):
    """Catches a tensor handed out that is a view of the mapped file."""
    path = tmp_path / "in.pt"
    torch.save({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        checkpoint.read("a").zero_()
        assert checkpoint.read("a").tolist() == [1, 1, 1]
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("select", [None, ["head"], ["embed"]])
def test_tied_tensors_stay_equal(suffix, select, tmp_path):
    """Catches a shared weight edited twice, edited on one side, or refused by safetensors."""
    shared = torch.arange(6.0).reshape(2, 3)
    big = torch.arange(8.0)
    source, target = tmp_path / "in.pt", tmp_path / f"out{suffix}"
    # One view of `big` has the address of another, and yet they are different tensors.
    tensors = {"embed": shared, "long": big, "short": big[:4], "other": big[4:], "head": shared}
    torch.save(tensors, source)
    asked = []

    def transform(name, tensor):
        asked.append(name)
        return 2 * tensor

    rewrite(source, target, transform, select=select)
    assert asked == ["embed"]  # What shares a part of its memory cannot be edited.
    result = load(target) if suffix == ".pt" else load_file(target)
    assert torch.equal(result["embed"], 2 * shared)
    assert torch.equal(result["head"], 2 * shared)
    assert torch.equal(result["long"], big)
    assert torch.equal(result["short"], big[:4])
    assert torch.equal(result["other"], big[4:])
    if suffix == ".pt":
        assert result["embed"].data_ptr() == result["head"].data_ptr()


def test_untouched_ties_stay_tied(tmp_path):
    """Catches a file that grows because sharing was lost where nothing was edited."""
    shared = torch.ones(3)
    torch.save(
        {"a": shared, "b": shared, "empty": shared[:0], "none": shared[:0]}, tmp_path / "i.pt"
    )
    rewrite(tmp_path / "i.pt", tmp_path / "o.pt", lambda name, tensor: None)
    result = load(tmp_path / "o.pt")
    assert result["a"].data_ptr() == result["b"].data_ptr()


DTYPES = [torch.bool, torch.bfloat16, torch.float32, torch.int64, torch.complex64]


@settings(deadline=None, max_examples=25)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES), st.booleans()),
        max_size=5,
    )
)
def test_to_safetensors(spec):
    """Catches a wrong offset or byte order of elements for odd sizes and transposed tensors, and
    a tensor that is not aligned in the file."""
    tensors = {}
    for seed, (name, (shape, dtype, transposed)) in enumerate(spec.items()):
        generator = torch.Generator().manual_seed(seed)
        tensor = torch.randn(shape, generator=generator).to(dtype)
        tensors[name] = tensor.mT if transposed and tensor.dim() > 1 else tensor
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.pt", Path(folder) / "out.safetensors"
        torch.save(tensors, source)
        rewrite(source, target, lambda name, tensor: None)
        result = load_file(target)
        with open_checkpoint(target) as checkpoint:
            assert checkpoint.metadata == {"format": "pt"}
            for name in checkpoint.names:
                assert checkpoint._entries[name].start % checkpoint.dtype(name).itemsize == 0
    assert result.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert result[name].dtype == tensor.dtype
        assert torch.equal(result[name], tensor)


def test_parameters_stay_parameters(tmp_path):
    """Catches a Parameter turned into a tensor, or its requires_grad changed."""
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    torch.save({"a": torch.nn.Parameter(torch.ones(2)), "b": frozen}, tmp_path / "in.pt")
    rewrite(tmp_path / "in.pt", tmp_path / "out.pt", double)
    result = load(tmp_path / "out.pt")
    assert isinstance(result["a"], torch.nn.Parameter)
    assert result["a"].tolist() == [2, 2]
    assert (result["a"].requires_grad, result["b"].requires_grad) == (True, False)


class Malicious:
    """Pickled, it makes a file when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"a": evil}], ids=["top", "in"])
def test_pickle_is_not_executed(wrap, modern, tmp_path):
    """Catches code of the file run on reading it."""
    marker, path = tmp_path / "marker", tmp_path / "in.pt"
    torch.save(wrap(Malicious(marker)), path, _use_new_zipfile_serialization=modern)
    with pytest.raises(CheckpointError, match=r"in.pt: .* found a pickle that would run posix.mk"):
        open_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # The control: the file does what it threatens.
    assert marker.exists()


def test_plain_pickle_is_not_executed(tmp_path):
    """Catches a bare pickle under a torch suffix handed to the ordinary unpickler."""
    marker, path = tmp_path / "marker", tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Malicious(marker)))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: expected a state dict"):
        open_checkpoint(path)
    assert not marker.exists()


def scripted() -> bytes:
    """A TorchScript-like archive: what torch looks for is the file constants.pkl."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("constants.pkl", "data.pkl", "version"):
            archive.writestr(f"archive/{name}", b"3\n")
    return buffer.getvalue()


def saved(value, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


BAD = {
    "empty": (b"", "expected a state dict saved by torch.save"),
    "text": (b"hello world" * 20, "expected a state dict saved by torch.save"),
    "cut zip": (saved({"a": torch.ones(999)})[:2000], "expected a state dict saved by torch.save"),
    "cut legacy": (
        saved({"a": torch.ones(999)}, _use_new_zipfile_serialization=False)[:2000],
        r"expected storage '\d+' to end by byte 2000, found 4\d+",
    ),
    "TorchScript": (scripted(), "expected a state dict saved by torch.save"),
    "whole module": (saved(torch.nn.Linear(2, 2)), "would run torch.nn.modules.linear.Linear"),
    "tensor": (saved(torch.ones(2)), "expected a state dict, found Tensor"),
    "list": (saved([torch.ones(2)]), "expected a state dict, found list"),
    "number as name": (saved({3: torch.ones(2)}), "names that are strings, found 3"),
    "nested": (saved({"encoder": {"w": torch.ones(2)}}), "flat state dict.* 'encoder' to hold a d"),
    "two wrappers": (saved({"model": {}, "state_dict": {}}), "one state dict under"),
    "sparse": (saved({"a": torch.eye(2).to_sparse()}), "'a' to be a dense tensor"),
    "meta": (saved({"a": torch.ones(2, device="meta")}), "'a' to be a dense tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file(case, tmp_path):
    """Catches an internal error of torch handed to the user, and a container half understood."""
    data, message = BAD[case]
    (tmp_path / "in.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path / "in.pt")
    assert str(tmp_path / "in.pt") in str(caught.value)
    assert len(str(caught.value)) < 1000


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1), st.booleans())
def test_damaged_file_never_crashes(flips, modern):
    """Catches an exception of another kind than the reader promises, on any damage."""
    damaged = bytearray(saved({"a": torch.ones(3)}, _use_new_zipfile_serialization=modern))
    for place, value in flips:
        damaged[int(place * (len(damaged) - 1))] ^= value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.pt"
        path.write_bytes(damaged)
        try:
            with open_checkpoint(path) as checkpoint:
                for name in checkpoint.names:
                    checkpoint.read(name)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_what_safetensors_cannot_hold(tmp_path):
    """Catches an entry or a precision lost in conversion without a word."""
    source, target = tmp_path / "in.pt", tmp_path / "out.safetensors"
    for state, message in [
        ({"a": torch.ones(2), "b._extra_state": {"x": 1}}, r"only tensors, .*'b._extra_state'"),
        ({"a": torch.ones(2), "step": 7}, r"only tensors, .*\['step'\]"),
        ({"a": torch.ones(2, dtype=torch.complex128)}, "'a' in a dtype of safetensors, found"),
        ({"__metadata__": torch.ones(2)}, "tensor names that safetensors allows"),
    ]:
        torch.save(state, source)
        with pytest.raises(CheckpointError, match=message):
            rewrite(source, target, double)
        assert not target.exists()
        rewrite(source, tmp_path / "out.pt", double, force=True)
        kept = load(tmp_path / "out.pt")
        assert kept.keys() == state.keys()
        assert kept.get("step") == state.get("step")
