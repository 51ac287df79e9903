"""Simulated images, sounds and vectors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spectral_engine.datafree.fields import as_image, fields, smooth

SHAPES = st.one_of(
    st.tuples(st.integers(1, 70)),
    st.tuples(st.integers(1, 3), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
)


@settings(max_examples=30, deadline=None)
@given(SHAPES, st.integers(1, 9), st.integers(0, 5))
def test_any_shape_is_drawn_finite_and_again_the_same(shape, count, seed):
    """Catches an axis of one entry that divides by 0, a shape that is not the one asked for, and
    draws that hang on a random state of their own."""
    one, other = (fields(count, shape, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert one.shape == (count, *shape)
    assert one.dtype == torch.float32
    assert bool(torch.isfinite(one).all())
    assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(1, 32, 32), (2, 256), (784,)])
def test_neighbours_are_alike(shape):
    """Catches fields without the spectrum that they are there for: white noise has a correlation
    of 0 within 4 / sqrt(8,192) here."""
    found = fields(64, shape, torch.Generator().manual_seed(0))
    found = found.reshape(64, -1, 28) if shape == (784,) else found
    found = found - found.mean()
    near = (found[..., 1:] * found[..., :-1]).mean() / found.square().mean()
    assert near > 0.4


def test_power_falls_with_frequency():
    """Catches an amplitude that falls by another power than asked for: over four octaves by a
    factor of 16, in power of 256."""
    found = smooth(400, (1, 256), torch.Generator().manual_seed(0))
    power = torch.fft.rfft(found[:, 0]).abs().square().mean(0)
    low, high = power[3:6].mean(), power[48:96].mean()
    assert 128 < low / high < 512


def test_vectors_that_may_be_images_are():
    """Catches flattened images drawn as white noise, and vectors taken for tiny images."""
    assert as_image(784) == (1, 28, 28)
    assert as_image(3 * 32 * 32) == (3, 32, 32)
    assert as_image(16) is None
    assert as_image(500) is None
