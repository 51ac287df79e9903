"""Layers that are sparsified together are what they are one by one."""

import copy

import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.pruning import batched as together


def network() -> nn.Sequential:
    """Layers of several shapes, one of them a batch."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),
        nn.ConvTranspose1d(6, 4, 3),
        nn.Linear(30, 20),
        nn.Linear(7, 3),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": "magnitude"},
        {"recipe": "randomized", "seed": 5},
        {"recipe": se.Randomized(law="l2", rescale=False)},
        {"recipe": se.Recipe(budget=se.ERK())},
        {"recipe": [se.Recipe(se.Randomized(), select=se.Select("2")), "magnitude"]},
    ],
)
@pytest.mark.parametrize("most_bytes", [1, 1 << 28])
def test_together_is_one_by_one(monkeypatch, options, most_bytes):
    """A layer under another's stream or sparsity, rows in another order, a run cut wrong."""
    model = network()
    alone = copy.deepcopy(model)
    expected = se.prune(alone, sparsity=0.6, **options)
    monkeypatch.setattr(together, "DEVICES", ("cpu",))
    monkeypatch.setattr(together, "MOST_BYTES", most_bytes)
    found = se.prune(model, sparsity=0.6, **options)
    for one, other in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row.name for row in found.layers] == [row.name for row in expected.layers]
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert (one.nnz, one.sparsity, one.requested) == (
            other.nnz,
            other.sparsity,
            other.requested,
        )


def test_only_plain_methods_go_together(monkeypatch):
    """A refit, a pattern, a group or calibration that the run of layers would leave out."""
    monkeypatch.setattr(together, "DEVICES", ("cpu",))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("went together")

    monkeypatch.setattr(together.spectral_kernels, "sparsify_many", refuse)
    for options in (
        {"recipe": se.Recipe(refit=se.Scale())},
        {"recipe": se.Recipe(budget=se.Pattern("2:4"))},
        {"recipe": se.Recipe(budget=se.Uniform(group="row"))},
        {"recipe": "aligned"},
        {"calibration": [torch.randn(5, 8)]},
    ):
        se.prune(nn.Sequential(nn.Linear(8, 4)), sparsity=0.5, **options)
    with pytest.raises(AssertionError, match="went together"):
        se.prune(nn.Sequential(nn.Linear(8, 4)), sparsity=0.5)


def test_revived_entries_are_refused(monkeypatch):
    """Entries of an earlier pruning that something has written to, pruned as if they were kept."""
    monkeypatch.setattr(together, "DEVICES", ("cpu",))
    model = nn.Sequential(nn.Linear(30, 20))
    se.prune(model, sparsity=0.5)
    with torch.no_grad():
        zero = model[0].weight == 0
        model[0].weight[zero] = 5.0
    with pytest.raises(ValueError, match=r"300 pruned entries of 0\.weight hold values"):
        se.prune(model, sparsity=0.2)


def test_a_broken_layer_is_named(monkeypatch):
    """An error out of a run that says nothing of where to look."""
    monkeypatch.setattr(together, "DEVICES", ("cpu",))

    def broken(*_: object, **__: object) -> None:
        raise ValueError("weight: broken")

    monkeypatch.setattr(together.spectral_kernels, "sparsify_many", broken)
    with pytest.raises(ValueError, match=r"model: 0.weight to 1.weight: weight: broken"):
        se.prune(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), sparsity=0.5)
