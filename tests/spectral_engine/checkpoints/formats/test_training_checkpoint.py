"""Training checkpoints: what lies beside the state dict is kept, and second weights are told of."""

import argparse
import collections
import datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from spectral_engine.checkpoints import CheckpointError, open_checkpoint, rewrite

WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}


def average():
    return {name: tensor + 1 for name, tensor in WEIGHTS.items()}


def other_weights(container, path: Path) -> dict[str, str]:
    torch.save(container, path)
    with open_checkpoint(path) as checkpoint:
        return checkpoint.other_weights()


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        ({"state_dict_ema": average()}, "state_dict_ema"),
        ({"ema": average()}, "ema"),
        ({"teacher": {f"module.{key}": value for key, value in average().items()}}, "teacher"),
        ({"callbacks": {"EMA": {"ema_state_dict": average()}}}, "callbacks.EMA.ema_state_dict"),
        ({"ema": {"decay": 0.9, "shadow_params": list(average().values())}}, "ema.shadow_params"),
    ],
)
def test_second_set_of_weights_is_told_of(beside, name, tmp_path):
    """Catches an average or a teacher that stays dense beside pruned weights without a word."""
    found = other_weights({"state_dict": WEIGHTS, **beside}, tmp_path / "in.pt")
    assert found == {name: "a second set of 1 weights, not changed (nor written to safetensors)"}
    rewrite(tmp_path / "in.pt", tmp_path / "out.pt", lambda name, tensor: 2 * tensor)
    result = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(result["state_dict"]["fc.weight"], 2 * WEIGHTS["fc.weight"])
    for part in name.split("."):
        result = result[part]
    kept = result[0] if isinstance(result, list) else next(iter(result.values()))
    assert torch.equal(kept, WEIGHTS["fc.weight"] + 1)


def test_second_set_in_the_same_memory(tmp_path):
    """Catches a set that changes with the first one, told of as kept."""
    found = other_weights({"model": WEIGHTS, "ema": dict(WEIGHTS)}, tmp_path / "in.pt")
    assert list(found) == ["ema"]
    assert "change with it" in found["ema"]
    rewrite(tmp_path / "in.pt", tmp_path / "out.pt", lambda name, tensor: 2 * tensor)
    result = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(result["ema"]["fc.weight"], 2 * WEIGHTS["fc.weight"])


def test_optimizer_is_no_second_set(tmp_path):
    """Catches momenta, which have the shapes of the weights, told of as weights."""
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    container = {"model": layer.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    assert other_weights(container, tmp_path / "in.pt") == {}


def test_plain_classes_beside_the_weights(tmp_path):
    """Catches a Lightning checkpoint refused for the Namespace of its hyper-parameters."""
    beside = {
        "hyper_parameters": argparse.Namespace(
            lr=0.1, out=Path("x"), when=datetime.date(2020, 1, 2)
        ),
        "metric": np.float64(0.5),
        "history": np.arange(3),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "kinds": {1, 2},
        "raw": bytearray(b"abc"),
    }
    torch.save({"state_dict": WEIGHTS, **beside}, tmp_path / "in.ckpt")
    rewrite(tmp_path / "in.ckpt", tmp_path / "out.ckpt", lambda name, tensor: 2 * tensor)
    result = torch.load(tmp_path / "out.ckpt", weights_only=False)
    assert torch.equal(result["state_dict"]["fc.weight"], 2 * WEIGHTS["fc.weight"])
    assert result["hyper_parameters"] == beside["hyper_parameters"]
    assert result["history"].tolist() == [0, 1, 2]
    assert {key: result[key] for key in ("metric", "counts", "kinds", "raw")} == {
        key: beside[key] for key in ("metric", "counts", "kinds", "raw")
    }
    rewrite(tmp_path / "in.ckpt", tmp_path / "out.safetensors", lambda name, tensor: None)


class Unknown:
    """A class of the user's own."""


def test_other_class_is_refused_with_a_way_out(tmp_path):
    """Catches a refusal that leaves the user nothing to do, and a declared class refused."""
    torch.save({"state_dict": WEIGHTS, "extra": Unknown()}, tmp_path / "in.pt")
    with pytest.raises(CheckpointError, match=r"would run .*Unknown \(if you trust the file, load"):
        open_checkpoint(tmp_path / "in.pt")
    with torch.serialization.safe_globals([Unknown]), open_checkpoint(tmp_path / "in.pt") as file:
        assert file.names == list(WEIGHTS)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors", ".npz"])
def test_text_in_place_of_weights(suffix, tmp_path):
    """Catches a git-lfs pointer read as a header of 2e18 bytes, and a web page as a pickle."""
    path = tmp_path / f"in{suffix}"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n")
    with pytest.raises(CheckpointError, match="found a git-lfs pointer to them; `git lfs pull`"):
        open_checkpoint(path)
    path.write_bytes(b"<!DOCTYPE html>\n<html></html>")
    with pytest.raises(CheckpointError, match="found a web page"):
        open_checkpoint(path)
