"""se.compare of two models: the rows, names and errors of a report of `prune`."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spectral_engine as se


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({
        "embed": nn.Embedding(20, 8),
        "rnn": nn.LSTM(8, 6),
        "conv": nn.Conv1d(6, 9, 3, groups=3),
        "qkv": nn.Linear(6, 12),
    })  # fmt: skip


def test_rows_are_those_of_a_report() -> None:
    """Catches a row of another name or size than `prune` reports, blocks compared as one stacked
    matrix, and a weight that is ignored on one side only.
    """
    dense, split = network(), {"qkv": ("q", "k")}
    pruned = copy.deepcopy(dense)
    recipe = se.Recipe(se.Magnitude(), select=se.Select(split=split))
    report = se.prune(pruned, recipe, 0.6, measure=True)
    found = se.compare(dense, pruned, split=split, ignore="embed")
    assert [row.name for row in found.skipped] == ["embed.weight"]
    assert [(row.name, row.shape) for row in found.layers] == [
        (row.name, row.shape) for row in report.layers
    ]
    for row, reported in zip(found.layers, report.layers, strict=True):
        assert row.sparsity == pytest.approx(reported.sparsity)
        assert row.spectral == pytest.approx(reported.spectral, rel=2e-3)
        assert row.frobenius == pytest.approx(reported.frobenius, rel=1e-5)
        assert row.mean_singular_value == pytest.approx(reported.singular_values, abs=2e-3)
    some = se.compare(dense, pruned, ignore=["embed", "rnn.*[[]cell]"])
    assert "rnn.weight_hh_l0[cell]" in {row.name for row in some.skipped}
    assert "rnn.weight_hh_l0[input]" in {row.name for row in some.layers}


def test_models_that_do_not_match_are_refused(tmp_path) -> None:
    """Catches a weight of one model alone, or of another grouping, passed over, and a model held
    against a file, which does not say what its tensors are.
    """
    dense = network()
    other = copy.deepcopy(dense)
    other["conv"] = nn.Conv1d(2, 9, 3)
    with pytest.raises(ValueError, match=r"pruned: expected tensor 'conv\.weight' of ModuleDict"):
        se.compare(dense, other)
    del other["conv"]
    with pytest.raises(ValueError, match=r"in ModuleDict; it lacks 'conv\.weight'"):
        se.compare(dense, other)
    with pytest.raises(ValueError, match=r"in ModuleDict; it has 'conv\.weight'"):
        se.compare(other, dense)
    save_file(dense.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(TypeError, match="pruned: expected a model if dense is one"):
        se.compare(dense, tmp_path / "w.safetensors")


def test_a_quantised_side_is_named(tmp_path) -> None:
    """Catches a tensor of integers called missing."""
    save_file({"w": torch.ones(3, 3)}, tmp_path / "a.safetensors")
    save_file({"w": torch.ones(3, 3, dtype=torch.int8)}, tmp_path / "b.safetensors")
    with pytest.raises(TypeError, match=r"in tensor 'w' of .*; got int8"):
        se.compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
