"""The magnitude curve against the entries themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels import magnitude_curve

from tests.support.cases import mixed_values


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-30, 1.0, 1e15]))
@settings(max_examples=20, deadline=None)
def test_bounds_hold_and_counts_add_up(seed, scale):
    """Catches a bin left out or counted twice, zeros lost, and bounds on the wrong side."""
    A = (scale * mixed_values((13, 29), seed)).astype(np.float32)
    squares = np.sort(A.astype(np.float64).ravel() ** 2)[::-1]
    curve = magnitude_curve(A)
    assert curve.counts.sum() == A.size
    assert curve.counts[-1] == np.count_nonzero(A == 0)
    ends = np.cumsum(curve.counts)
    starts = ends - curve.counts
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        exact = squares[start:end].sum()
        slack = 1e-12 * exact
        assert curve.least[k] - slack <= exact <= curve.most[k] + slack
        assert curve.squares[k] == pytest.approx(exact, rel=2e-4)
        if end > start:
            assert squares[start] <= curve.largest[k]
    assert (np.diff(curve.largest) < 0).all()


def test_zeros_alone_are_one_bin():
    """Catches an empty curve of a matrix that has nothing to keep."""
    curve = magnitude_curve(np.zeros((3, 4)))
    assert curve.counts.tolist() == [12]
    assert curve.most.tolist() == [0.0]


def test_not_finite_is_refused_by_the_name_given():
    """Catches NaN counted as the largest entry, and an error that does not say which weight."""
    with pytest.raises(ValueError, match=r"layer\.0: expected finite entries"):
        magnitude_curve(np.array([[1.0, np.nan]]), "layer.0")
