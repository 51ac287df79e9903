"""Calibrated results are the same on any number of threads."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import spectral_engine as se

FEATURES = 300  # LAPACK divides the work on smaller matrices between no threads


@pytest.fixture
def threads() -> Iterator[None]:
    """torch's number of threads comes back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("recipe", ["wanda", "least-squares", "sparsegpt", "alps", "auto"])
def test_what_is_kept_does_not_depend_on_threads(recipe):
    """Catches sums, factors or eigenvectors that are divided between threads: another machine, or
    another setting, keeps other weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 320), nn.ReLU(), nn.Linear(320, 16))
    mixing = torch.eye(FEATURES) + torch.randn(FEATURES, FEATURES) / FEATURES**0.5
    batches = [torch.randn(400, FEATURES) @ mixing for _ in range(2)]
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        pruned = copy.deepcopy(model)
        se.prune(pruned, recipe, 0.6, calibration=batches, progress=False)
        found.append(pruned.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
