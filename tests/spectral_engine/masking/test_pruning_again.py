"""Pruning a model that has masks."""

import pytest
import torch

import spectral_engine as se
from tests.support.masked_models import check, kept_by, mlp, train


@pytest.mark.parametrize("method", ["magnitude", "randomized", "principal"])
def test_a_second_pruning_shrinks_the_mask(method):
    """Catches entries that come back in the next round, and rounds that add up to another
    sparsity than the one asked for."""
    model = mlp(64)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    before = None
    for seed, sparsity in enumerate((0.5, 0.8)):
        report = se.prune(model, method, sparsity, seed=seed)
        kept = kept_by(model)
        for row in report.layers:
            assert row.nnz == int((model.get_parameter(row.name) != 0).sum())
            assert before is None or not (kept[row.name] & ~before[row.name]).any()
            assert len(model.get_parameter(row.name)._backward_hooks) == 1
        train(model, optimizer)
        check(model, kept)
        before = kept
    assert report.sparsity >= (0.75 if method == "randomized" else 0.799)
    assert method != "magnitude" or report.sparsity < 0.801


def test_a_weaker_pruning_brings_nothing_back():
    """Catches a mask that grows when less sparsity is asked for, and its report."""
    model = mlp()
    se.prune(model, sparsity=0.8)
    kept = kept_by(model)
    report = se.prune(model, sparsity=0.2)
    assert all(torch.equal(kept_by(model)[name], entries) for name, entries in kept.items())
    assert report.nnz == sum(int(entries.sum()) for entries in kept.values())
    se.prune(model, sparsity=0.9, masks=False)  # not lasting, and under the masks there are
    assert all(torch.equal(kept_by(model)[name], entries) for name, entries in kept.items())


def test_a_refit_brings_nothing_back():
    """Catches zeros of an earlier pruning that a refit with a mask of its own fills in, and a
    report that counts them."""
    model = mlp()
    se.prune(model, sparsity=0.5)
    kept = kept_by(model)
    report = se.prune(model, "sparsegpt", 0.2, calibration=[torch.randn(64, 8)])
    check(model, kept)
    for row in report.layers:
        assert row.nnz == int((model.get_parameter(row.name) != 0).sum())
        assert row.sparsity == pytest.approx(1 - row.nnz / row.size)
    assert all(not (kept_by(model)[name] & ~entries).any() for name, entries in kept.items())


def test_a_run_that_is_stopped_leaves_no_mask():
    """Catches pruned weights, or masks, that are left where a progress callback raises."""
    model = mlp()
    before = [parameter.detach().clone() for parameter in model.parameters()]

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        se.prune(model, sparsity=0.5, progress=stop)
    assert se.masks(model) == {}
    assert all(map(torch.equal, model.parameters(), before))
