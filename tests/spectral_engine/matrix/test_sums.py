"""Sums over samples: exact in any order, and accurate at any scale."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_engine.matrix.sums import Accumulator, scale_of

CPU = torch.device("cpu")


def added(parts, order, scale, dtype=torch.float32, dense=None, weights=None):
    total = Accumulator(parts[0].shape[-1], None, dtype, CPU, scale, 1000)
    for i in order:
        total.add(
            parts[i], None if dense is None else dense[i], None if weights is None else weights[i]
        )
    return total.moments()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.integers(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    n=st.sampled_from([1, 7, 300]),
)
def test_the_order_of_parts_does_not_show(seed, spread, dtype, n):
    """Catches sums whose last bits hang on which part, of which process, came first; of outlier
    features, of parts of other sizes and scales, of weights, and of inputs beside dense ones."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.exp(2.0 * torch.randn(n, generator=generator))
    parts = [
        (torch.randn(3 + 2 * i, n, generator=generator) * features * 2.0 ** (spread * (i % 3)))
        .to(dtype)
        for i in range(6)
    ]  # fmt: skip
    dense = [part + 1 for part in parts]
    weights = [torch.rand(len(part), generator=generator) for part in parts]
    order = torch.randperm(6, generator=generator).tolist()
    scale = scale_of(parts[0])
    one, other = (added(parts, o, scale, dtype, dense, weights) for o in (range(6), order))
    for name in ("second", "mean", "cross", "dense_mean"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("size", [1e-15, 1.0, 1e12])
@pytest.mark.parametrize("first", ["as the others", "zeros", "one feature alone"])
def test_sums_are_as_accurate_as_float32_is(size, first):
    """Catches a grid too coarse for small inputs, or for those that the first part says too little
    of, which would make moments zero without a word."""
    generator = torch.Generator().manual_seed(0)
    parts = [size * torch.randn(200, 8, generator=generator) for _ in range(5)]
    if first == "zeros":
        parts[0] = torch.zeros(200, 8)
    elif first == "one feature alone":
        parts[0][:, 1:] = 0
    scale = next(found for found in map(scale_of, parts) if found is not None)
    moments = added(parts, range(5), scale)
    x = torch.cat(parts).double().numpy()
    norm = np.sqrt((x**2).mean(0))
    error = np.abs(moments.second.numpy() - x.T @ x / len(x)) / np.outer(norm, norm)
    assert error.max() < 5e-7
    assert np.abs(moments.mean.numpy() - x.mean(0)).max() < 1e-6 * norm.max()


def test_nothing_but_zeros_is_nothing():
    """Catches a scale of zero, and NaN of it."""
    moments = added([torch.zeros(4, 3)], [0], None)
    assert scale_of(torch.zeros(4, 3)) is None
    assert not moments.second.any()
