"""Checkpoint folders: shards through an index that is not to be trusted, and the other files."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectral_engine.checkpoints import CheckpointError, open_checkpoint, rewrite

SHARDS = ["model-00001-of-00002", "model-00002-of-00002"]


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def make(folder: Path, kind: str = "safetensors", weight_map: dict | None = None) -> Path:
    """A folder of two shards with an index, company files, and a folder inside."""
    folder.mkdir(parents=True)
    first, second = (f"{shard}.{kind}" for shard in SHARDS)
    save({"b": torch.full((2, 3), 2.0), "a": torch.ones(4).half()}, folder / first)
    save({"c": torch.full((3,), 3.0), "unlisted": torch.ones(2)}, folder / second)
    weight_map = {"c": second, "a": first, "b": first} if weight_map is None else weight_map
    index = {"metadata": {"total_size": 44}, "weight_map": weight_map}
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps(index, indent=3) + "\n")
    (folder / "config.json").write_text('{"hidden_size": 3}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "empty").mkdir()
    return folder


def double(name, tensor):
    return 2 * tensor


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_reads_through_the_index(kind, tmp_path):
    """Catches a name looked up in the wrong shard, a lost one, and one that the index leaves out
    on purpose."""
    with open_checkpoint(make(tmp_path / "in", kind)) as checkpoint:
        assert sorted(checkpoint.names) == ["a", "b", "c"]
        assert checkpoint.names[-1] == "c"  # The second shard comes last.
        assert checkpoint.shape("b") == (2, 3)
        assert checkpoint.dtype("a") == torch.float16
        assert checkpoint.read("c").tolist() == [3, 3, 3]
        assert checkpoint.metadata == {"total_size": 44}


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_rewrite_keeps_shards_index_and_company(kind, tmp_path):
    """Catches a file lost or renamed, an index written anew, a tensor not edited or edited twice,
    and an unlisted tensor edited."""
    source, target = make(tmp_path / "in", kind), tmp_path / "out"
    asked = []

    def transform(name, tensor):
        asked.append(name)
        return 2 * tensor

    rewrite(source, target, transform)
    assert sorted(asked) == ["a", "b", "c"]
    paths = {path.relative_to(source) for path in source.rglob("*")}
    assert {path.relative_to(target) for path in target.rglob("*")} == paths
    for path in paths:
        if (source / path).is_file() and path.suffix == ".json":
            assert (target / path).read_bytes() == (source / path).read_bytes()
    with open_checkpoint(target) as checkpoint:
        assert checkpoint.read("a").tolist() == [2] * 4
        assert checkpoint.read("c").tolist() == [6] * 3
    shard = target / f"{SHARDS[1]}.{kind}"
    last = load_file(shard) if kind == "safetensors" else torch.load(shard, weights_only=True)
    assert last["unlisted"].tolist() == [1, 1]


def test_identity_is_byte_identical(tmp_path):
    """Catches any byte of any file changed without need."""
    source, target = make(tmp_path / "in"), tmp_path / "out"
    rewrite(source, target, lambda name, tensor: tensor)
    for path in source.rglob("*"):
        if path.is_file():
            assert (target / path.relative_to(source)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_single_file(name, tmp_path):
    """Catches a folder that only works with an index."""
    source = tmp_path / "in"
    source.mkdir()
    save({"a": torch.ones(3)}, source / name)
    rewrite(source, tmp_path / "out", double)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.read("a").tolist() == [2, 2, 2]
        assert checkpoint.metadata == ({"format": "pt"} if "safe" in name else {})


def test_folder_without_weights(tmp_path):
    """Catches a folder without weights taken for an empty checkpoint."""
    with pytest.raises(CheckpointError, match=r"expected one of model.safetensors, .*"):
        open_checkpoint(tmp_path)


OUTSIDE = [
    "\ud800.safetensors",
    "../secret.safetensors",
    "../../etc/passwd",
    "/etc/passwd",
    "sub/../../x",
    "..",
    "",
]


@pytest.mark.parametrize("file", [*OUTSIDE, "C:\\x", "sub/x.safetensors", "a\0b", 3, None, ["x"]])
def test_index_that_points_elsewhere(file, tmp_path):
    """Catches a file outside the folder read, and then written outside the target."""
    save({"a": torch.ones(3)}, tmp_path / "secret.safetensors")
    source = make(tmp_path / "in", weight_map={"a": file})
    with pytest.raises(CheckpointError, match="'a' to be in a file beside the index, found"):
        open_checkpoint(source)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        rewrite(source, tmp_path / "out", double)
    assert sorted(os.listdir(tmp_path)) == ["in", "secret.safetensors"]


@pytest.mark.parametrize("link", ["shard", "config.json", "model.safetensors.index.json"])
def test_link_that_leads_outside(link, tmp_path):
    """Catches a private file copied into the result through a symbolic link of the folder."""
    source = make(tmp_path / "in")
    path = source / (f"{SHARDS[0]}.safetensors" if link == "shard" else link)
    path.rename(tmp_path / "secret")
    path.symlink_to("../secret")
    with pytest.raises(CheckpointError, match=f"files inside this folder, found '{path.name}'"):
        rewrite(source, tmp_path / "out", double)
    assert sorted(os.listdir(tmp_path)) == ["in", "secret"]


def test_linked_folder(tmp_path):
    """Catches a folder behind a link copied from elsewhere, or dropped without a word."""
    source = make(tmp_path / "in")
    (source / "linked").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="no symbolic link to a folder, found 'linked'"):
        rewrite(source, tmp_path / "out", double)


def test_pipe_in_folder(tmp_path):
    """Catches a copy that waits for ever."""
    source = make(tmp_path / "in")
    os.mkfifo(source / "pipe")
    with pytest.raises(CheckpointError, match="a regular file"):
        rewrite(source, tmp_path / "out", double)


def test_links_of_the_hub_cache(tmp_path):
    """Catches the hub's own cache refused: its snapshots are links into blobs/ beside them."""
    source = make(tmp_path / "models--x" / "snapshots" / "revision")
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    for number, path in enumerate(file for file in source.iterdir() if file.is_file()):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    rewrite(source, tmp_path / "out", double)
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.read("c").tolist() == [6] * 3
    (source / "secret").symlink_to("../../../secret")
    (tmp_path / "secret").touch()
    with pytest.raises(CheckpointError, match="files inside this folder, found 'secret'"):
        rewrite(source, tmp_path / "again", double)


INDEXES = {
    "not JSON": ("{", "the index in JSON"),
    "not an object": ("[]", "the index to be a JSON object"),
    "no weight_map": ("{}", "weight_map to be a JSON object, found None"),
    "weight_map a list": (
        '{"weight_map": ["a"]}',
        r"weight_map to be a JSON object, found \['a'\]",
    ),
    "same name twice": (
        '{"weight_map": {"a": "x", "a": "y"}}',
        "each name once in the index, found 'a' 2 times",
    ),
    "absent tensor": (
        json.dumps({"weight_map": {"zz": f"{SHARDS[0]}.safetensors"}}),
        rf"{SHARDS[0]}.safetensors: expected tensor 'zz', as the index says",
    ),
}


@pytest.mark.parametrize("case", INDEXES)
def test_bad_index(case, tmp_path):
    """Catches an index that is believed, or that fails with a bare KeyError."""
    text, message = INDEXES[case]
    source = make(tmp_path / "in")
    (source / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(source)
    assert str(source) in str(caught.value)


def test_missing_shard(tmp_path):
    """Catches a missing shard noticed only after other shards were written, or skipped."""
    source = make(tmp_path / "in")
    (source / f"{SHARDS[1]}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"{SHARDS[1]}.safetensors"):
        rewrite(source, tmp_path / "out", double)
    assert os.listdir(tmp_path) == ["in"]


def test_name_in_two_shards(tmp_path):
    """Catches a tensor edited, or read, in a shard that the index does not give it to."""
    source = make(tmp_path / "in")
    index = {"weight_map": {"c": f"{SHARDS[1]}.safetensors", "d": f"{SHARDS[0]}.safetensors"}}
    save({"c": torch.full((3,), 7.0), "d": torch.ones(1)}, source / f"{SHARDS[0]}.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    rewrite(source, tmp_path / "out", double)
    with open_checkpoint(tmp_path / "out") as checkpoint:
        assert checkpoint.read("c").tolist() == [6, 6, 6]
        assert checkpoint.metadata == {}
    assert load_file(tmp_path / "out" / f"{SHARDS[0]}.safetensors")["c"].tolist() == [7, 7, 7]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_what_the_index_does_not_speak_of_is_told(kind, tmp_path):
    """Catches a tensor that stays dense and unlisted because the index omits it, or finds its
    name in another shard."""
    source = make(tmp_path / "in", kind)
    first, second = (f"{shard}.{kind}" for shard in SHARDS)
    save({"a": torch.ones(4), "b": torch.ones(2, 3), "c": torch.ones(3)}, source / first)
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.other_weights() == {
            f"{first}: c": f"the index finds it in {second}; kept as it is",
            f"{second}: unlisted": "the index leaves it out; kept as it is",
        }


def test_index_without_the_first_of_two_names(tmp_path):
    """Catches a tensor that is not edited because the index knows it by its second name only."""
    source = make(tmp_path / "in", "bin", {"body": f"{SHARDS[0]}.bin"})
    shared = torch.arange(6.0).reshape(2, 3)
    save({"head": shared.T, "body": shared}, source / f"{SHARDS[0]}.bin")
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.names == ["body"]
        told = checkpoint.other_weights()
        assert told[f"{SHARDS[0]}.bin: head"].endswith(
            "it is the memory of body, and changes with it"
        )
    rewrite(source, tmp_path / "out", double)
    result = torch.load(tmp_path / "out" / f"{SHARDS[0]}.bin", weights_only=True)
    assert torch.equal(result["body"], 2 * shared)
    assert torch.equal(result["head"], 2 * shared.T)


@pytest.mark.parametrize("target", ["loop", "nowhere"])
@pytest.mark.parametrize("name", ["loop", "config.json", f"{SHARDS[0]}.safetensors"])
def test_link_that_leads_nowhere(name, target, tmp_path):
    """Catches a loop of links that ends in a RuntimeError of pathlib."""
    source = make(tmp_path / "in")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(name if target == "loop" else target)
    with pytest.raises(CheckpointError, match=f"'{name}', which leads nowhere"):
        rewrite(source, tmp_path / "out", double)
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="round"):
        open_checkpoint(tmp_path / "round")


def test_empty_index(tmp_path):
    """Catches an index without tensors that fails for want of a shard."""
    with open_checkpoint(make(tmp_path / "in", weight_map={})) as checkpoint:
        assert checkpoint.names == []


def test_unreadable_folder(tmp_path, monkeypatch):
    """Catches files that os.walk leaves out without a word."""
    source = make(tmp_path / "in")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("1_Pooling"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="1_Pooling"):
        rewrite(source, tmp_path / "out", double)
