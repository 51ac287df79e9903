"""Files and folders compressed: the dense ones come back, streaming, whole or not at all."""

import json
import signal
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import spectral_engine as se
from spectral_engine.checkpoints import CheckpointError, open_checkpoint
from spectral_engine.checkpoints.formats.safetensors_format import SafetensorsFile
from spectral_engine.checkpoints.sparse import layout, reader
from spectral_engine.compression import writing
from spectral_engine.streaming.api import prune_into
from tests.support.sparse_weights import equal_bits, mixed, pruned, save, weights

SHARD = "model-0000{}-of-00002.safetensors"


def folder(path: Path) -> Path:
    """A folder of two shards, an index, a config and a file that is none of ours."""
    path.mkdir()
    tensors = mixed()
    names = sorted(tensors)
    parts = {SHARD.format(1): names[:4], SHARD.format(2): names[4:]}
    for file, own in parts.items():
        save(path / file, {name: tensors[name] for name in own})
    index = {
        "metadata": {"total_size": sum(one.nbytes for one in tensors.values()), "more": 1},
        "weight_map": {name: file for file, own in parts.items() for name in own},
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (path / "config.json").write_text(json.dumps({"hidden_size": 3}, indent=2) + "\n")
    (path / "tokenizer.json").write_text("{}")
    return path


@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(weights(), max_size=4))
def test_any_file_comes_back_byte_for_byte(tmp_path_factory, tensors):
    """Catches a header, an order or a bit that is not that of the dense file."""
    path = tmp_path_factory.mktemp("files")
    named = {f"{i}.weight" if i % 2 else f"{i}.other": one for i, one in enumerate(tensors)}
    dense = save(path / "dense.safetensors", named, origin="somewhere")
    report = se.compress_file(dense, path / "small.safetensors")
    se.decompress_file(path / "small.safetensors", path / "again.safetensors")
    assert (path / "again.safetensors").read_bytes() == dense.read_bytes()
    assert report.bytes <= report.dense_bytes == sum(one.nbytes for one in tensors)


def test_every_kind_of_tensor_is_read_as_dense(tmp_path):
    """Catches a compressed file that commands read otherwise than the dense one, and an embedding
    compressed though nobody asked for it."""
    dense = save(tmp_path / "dense.safetensors", note="kept")
    report = se.compress_file(dense, tmp_path / "small.safetensors")
    forms = {row.name: row.form for row in report.weights}
    assert forms["fc.weight"] == "bitmask"
    assert forms["rnn.weight_ih_l0"] == "deltas"
    assert forms["half.weight"] == "positions"
    assert "embed_tokens.weight" not in forms
    with (
        open_checkpoint(dense) as expected,
        open_checkpoint(tmp_path / "small.safetensors") as found,
    ):
        assert found.names == expected.names
        assert found.metadata == expected.metadata
        for name in found.names:
            assert found.shape(name) == expected.shape(name)
            assert found.dtype(name) == expected.dtype(name)
            assert equal_bits(found.read(name), expected.read(name))
    asked = se.compress_file(dense, tmp_path / "all.safetensors", targets="*")
    assert "embed_tokens.weight" in {row.name for row in asked.weights}


def test_commands_read_compressed_files(tmp_path):
    """Catches `prune`, `compare` and `spectra` that see the parts, or write them."""
    dense = save(tmp_path / "dense.safetensors")
    small = tmp_path / "small.safetensors"
    se.compress_file(dense, small)
    for target, source in (("a", dense), ("b", small)):
        se.prune_file(source, tmp_path / f"{target}.safetensors", "magnitude", 0.9, targets="fc*")
    written = [(tmp_path / f"{target}.safetensors").read_bytes() for target in "ab"]
    assert written[0] == written[1]
    assert {row.name for row in se.spectra(small, targets="fc*").layers} == {"fc.weight"}
    found = se.compare(dense, small, targets="fc*")
    assert [row.name for row in found.layers] == ["fc.weight"]


def test_parts_are_aligned(tmp_path):
    """Catches a float that begins at an odd byte, which some readers refuse."""
    se.compress_file(save(tmp_path / "dense.safetensors"), tmp_path / "small.safetensors")
    with open(tmp_path / "small.safetensors", "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    sizes = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1}
    header.pop("__metadata__")
    assert all(
        (8 + length + one["data_offsets"][0]) % sizes[one["dtype"]] == 0 for one in header.values()
    )
    assert load_file(tmp_path / "small.safetensors").keys() == header.keys()


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_other_formats_become_safetensors(suffix, tmp_path):
    """Catches a state dict of another format, or tied tensors, lost on the way."""
    import numpy as np  # noqa: PLC0415

    tensors = {"a.weight": pruned(16, 64, sparsity=0.7), "b.bias": torch.ones(3)}
    if suffix == ".npz":
        np.savez(tmp_path / "in.npz", **{name: one.numpy() for name, one in tensors.items()})
    else:
        tensors["tied.weight"] = tensors["a.weight"]
        torch.save(tensors, tmp_path / "in.pt")
    se.compress_file(tmp_path / f"in{suffix}", tmp_path / "small.safetensors")
    se.decompress_file(tmp_path / "small.safetensors", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == tensors.keys()
    assert all(equal_bits(found[name], one) for name, one in tensors.items())
    with pytest.raises(ValueError, match=r"target: expected a \.safetensors file"):
        se.compress_file(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}")


def test_a_folder_of_shards(tmp_path):
    """Catches an index that names what is not there, a config that says nothing or too much, and a
    file that is lost."""
    source = folder(tmp_path / "in")
    report = se.compress_file(source, tmp_path / "small")
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    for file in {SHARD.format(1), SHARD.format(2)}:
        stored = load_file(tmp_path / "small" / file)
        assert {name for name, where in index["weight_map"].items() if where == file} == set(stored)
    assert index["metadata"] == {"total_size": report.bytes, "more": 1}
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["hidden_size"] == 3
    assert config["quantization_config"]["quant_method"].startswith("spectral_engine")
    with open_checkpoint(source) as dense, open_checkpoint(tmp_path / "small") as small:
        assert small.names == dense.names
        assert all(equal_bits(small.read(name), dense.read(name)) for name in dense.names)
    se.decompress_file(tmp_path / "small", tmp_path / "out")
    for file in source.iterdir():
        again = tmp_path / "out" / file.name
        if file.suffix == ".json":
            assert json.loads(again.read_text()) == json.loads(file.read_text())
        else:
            assert again.read_bytes() == file.read_bytes()


def test_compressing_again_changes_nothing(tmp_path):
    """Catches a compressed file taken for a dense one with strange tensors."""
    small = tmp_path / "small.safetensors"
    se.compress_file(save(tmp_path / "dense.safetensors"), small)
    before = small.read_bytes()
    se.compress_file(small, small, force=True)
    assert small.read_bytes() == before


def test_negative_zeros_if_they_are_not_wanted(tmp_path):
    """Catches -0 lost though nobody asked for it, or stored though it was not wanted."""
    weight = torch.where(pruned(16, 64, sparsity=0.75) == 0, -0.0, 1.0)
    dense, small = (
        save(tmp_path / "a.safetensors", {"a.weight": weight}),
        tmp_path / "b.safetensors",
    )
    assert se.compress_file(dense, small).weights == []
    report = se.compress_file(dense, small, keep_negative_zero=False, force=True)
    assert report.weights[0].sparsity == 0.75
    with open_checkpoint(small) as checkpoint:
        assert equal_bits(checkpoint.read("a.weight"), weight + 0.0)


def test_names_that_clash_stay_dense(tmp_path):
    """Catches two tensors stored under one name."""
    tensors = {"a.weight": pruned(16, 64, sparsity=0.7), "a.bitmask": torch.ones(3)}
    dense = save(tmp_path / "dense.safetensors", tensors)
    assert se.compress_file(dense, tmp_path / "small.safetensors").weights == []
    se.decompress_file(tmp_path / "small.safetensors", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == dense.read_bytes()


def test_one_tensor_in_memory(tmp_path, monkeypatch):
    """Catches tensors gathered before they are written."""
    tensors = {f"{i}.weight": pruned(16, 640, sparsity=0.97, seed=i) for i in range(5)}
    dense = save(tmp_path / "dense.safetensors", tensors)
    alive: list[weakref.ref] = []
    read = SafetensorsFile.read

    def watched(self, name):
        assert not [one for one in alive if one() is not None]
        tensor = read(self, name)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(SafetensorsFile, "read", watched)
    se.compress_file(dense, tmp_path / "small.safetensors")
    assert len(alive) == 10  # counted, then written


def test_a_few_rows_in_memory(tmp_path, monkeypatch):
    """Catches a tensor read whole where some rows at a time do, or made dense whole, and rows lost
    or written twice where one block ends and the next begins."""
    tensors = {"a.weight": pruned(50, 64, sparsity=0.7), "b.weight": pruned(50, 640, sparsity=0.97)}
    dense, small = save(tmp_path / "dense.safetensors", tensors), tmp_path / "small.safetensors"
    for module in (writing, reader):
        monkeypatch.setattr(module, "CHUNK", 7 * 4 * 64)
    with monkeypatch.context() as patched:
        patched.setattr(SafetensorsFile, "read", None)
        se.compress_file(dense, small, targets="a")
    se.compress_file(dense, small, force=True)
    with monkeypatch.context() as patched:
        patched.setattr(reader.forms, "decode", None)
        se.decompress_file(small, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == dense.read_bytes()


def test_a_version_that_is_not_known(tmp_path):
    """Catches a later format read as this one."""
    small = tmp_path / "small.safetensors"
    se.compress_file(save(tmp_path / "dense.safetensors"), small)
    save_file(load_file(small), small, {layout.VERSION_KEY: "2"})
    with pytest.raises(CheckpointError, match="version 1 of the compressed format"):
        open_checkpoint(small)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: {**h, "fc.weight": {**h["fc.weight"], "shape": [200, 96]}}, "fc.weight"),
        (lambda h: {k: v for k, v in h.items() if k != "ids"}, "dense header|to place|ids"),
        (lambda h: {**h, "ids": 3}, "ids"),
        (lambda h: {**h, "new.weight": {**h["ids"], "data_offsets": [0, 1]}}, "place"),
        (lambda h: [], "JSON object"),
    ],
)
def test_a_dense_header_that_lies(change, said, tmp_path):
    """Catches a file that would be decompressed into one that no reader opens."""
    small = tmp_path / "small.safetensors"
    se.compress_file(save(tmp_path / "dense.safetensors"), small)
    with SafetensorsFile(small) as stored:
        metadata = {key: str(value) for key, value in stored.metadata.items()}
    changed = change(json.loads(metadata[layout.HEADER_KEY]))
    metadata[layout.HEADER_KEY] = json.dumps(changed)
    save_file(load_file(small), small, metadata)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(small)


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_files_are_refused_or_read(tmp_path_factory, data):
    """Catches another error than CheckpointError, a crash, or another shape out of a file that was
    cut short or changed in some bytes."""
    path = tmp_path_factory.mktemp("fuzz")
    small = path / "small.safetensors"
    tensors = {
        "a.weight": pruned(4, 40, sparsity=0.5), "b.weight": pruned(4, 400, sparsity=0.99),
        "c.weight": torch.eye(8).repeat(4, 4), "d": torch.ones(2),
    }  # fmt: skip
    se.compress_file(save(path / "dense.safetensors", tensors), small)
    raw = bytearray(small.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    small.write_bytes(raw)
    try:
        with open_checkpoint(small) as checkpoint:
            for name in checkpoint.names:
                tensor = checkpoint.read(name)
                assert tuple(tensor.shape) == checkpoint.shape(name)
                assert tensor.dtype == checkpoint.dtype(name)
    except CheckpointError:
        pass


KILLED = """
import os, signal, sys
import spectral_engine as se
from spectral_engine.compression import writing
encode = writing.forms.encode
def killed(weight, plan):
    os.kill(os.getpid(), signal.SIGKILL)
writing.forms.encode = killed
se.compress_file(sys.argv[1], sys.argv[2], force=True)
"""


@pytest.mark.parametrize("there", [True, False])
def test_killed_in_the_midst(there, tmp_path):
    """Catches half a file under the target's name, an old one gone, and litter that stays."""
    dense, small = save(tmp_path / "dense.safetensors"), tmp_path / "small.safetensors"
    if there:
        small.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, dense, small], check=False)
    assert done.returncode == -signal.SIGKILL
    assert small.exists() == there
    assert not there or small.read_bytes() == b"old"
    se.compress_file(dense, small, force=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == [dense.name, small.name]


def test_arguments_that_do_not_fit(tmp_path):
    """Catches an existing file replaced unasked, and a dense file decompressed."""
    dense, small = save(tmp_path / "dense.safetensors"), tmp_path / "small.safetensors"
    small.touch()
    with pytest.raises(FileExistsError):
        se.compress_file(dense, small)
    with pytest.raises(ValueError, match="source: expected a compressed file"):
        se.decompress_file(dense, tmp_path / "out.safetensors")
    with pytest.raises(TypeError, match="force"):
        se.compress_file(dense, small, force=1)
    assert se.compress_file(dense, small, targets="nothing*", force=True).unmatched


def test_what_is_pruned_into_a_compressed_file(tmp_path):
    """Catches the dense file left beside the compressed one, or an existing one replaced."""
    dense, small = save(tmp_path / "dense.safetensors"), tmp_path / "small.safetensors"
    finish = partial(se.compress_file, target=small)
    prune_into(dense, small, "magnitude", 0.9, finish=finish)
    assert sorted(one.name for one in tmp_path.iterdir()) == [dense.name, small.name]
    with open_checkpoint(small) as checkpoint:
        weight = checkpoint.read("full.weight")
    assert int((weight == 0).sum()) == round(0.9 * 25)
    with pytest.raises(FileExistsError):
        prune_into(dense, small, "magnitude", 0.9, finish=finish)
