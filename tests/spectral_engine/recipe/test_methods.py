"""The methods: what each scores by and keeps, and what cannot be written down."""

import numpy as np
import pytest
from spectral_kernels import LAW_NAMES

import spectral_engine as se
from spectral_engine.recipe.methods import METHODS

DRAWN = [law for law in LAW_NAMES if law != "threshold"]


def test_methods_are_the_documented_rows():
    """Catches a method that changes its score, its law or its rescaling unnoticed."""
    rows = {
        name: (made.score, made.law, made.rescale, made.needs_low_rank, made.draws)
        for name, made in ((name, kind()) for name, kind in METHODS.items())
    }
    assert rows == {
        "magnitude": ("magnitude", "threshold", False, False, False),
        "randomized": ("magnitude", "l1", True, False, True),
        "principal": ("mixture", "threshold", False, True, False),
        "aligned": ("aligned", "threshold", False, True, False),
    }


@pytest.mark.parametrize("law", DRAWN)
def test_a_law_rescales_only_where_that_is_bounded(law):
    """Catches rescaling by default under a spectral score, where E||S - A||_F^2 has no bound, and
    an unbiased law of magnitudes that is not rescaled."""
    assert se.Randomized(law=law).rescale
    assert not se.Principal(law=law).rescale
    assert not se.Aligned(law=law).rescale
    assert se.Principal(law=law, rescale=True).rescale
    assert not se.Randomized(law=law, rescale=False).rescale


def test_mixture_changes_the_score():
    """Catches a share that is stored without the score that uses it."""
    assert se.Principal(mixture=0.25).score == "mixture"
    assert se.Principal(mixture=np.float32(0.0)).score == "principal"
    assert se.Principal(mixture=1) == se.Principal(mixture=1.0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: se.Randomized(law="nope"), ValueError, "law: .*got 'nope'"),
        (lambda: se.Randomized(law=["l1"]), ValueError, "law: expected one of"),
        (lambda: se.Randomized(law="threshold", rescale=False), ValueError, "law: 'threshold' dra"),
        (lambda: se.Randomized(rescale=1), TypeError, "rescale: expected True or False; got 1"),
        (lambda: se.Principal(rescale=True), ValueError, "rescale: law 'threshold' draws nothing"),
        (lambda: se.Principal(mixture=1.5), ValueError, r"mixture: .*\[0, 1\]; got 1.5"),
        (lambda: se.Principal(mixture=float("nan")), ValueError, "mixture: .*got nan"),
        (lambda: se.Principal(mixture=True), TypeError, "mixture: .*number; got bool"),
        (lambda: se.Principal(mixture="a"), TypeError, "mixture: .*number; got str"),
        (lambda: se.Principal(rank=0), ValueError, "rank: expected at least 1; got 0"),
        (lambda: se.Aligned(rank=1.5), TypeError, "rank: expected an integer; got float"),
        (lambda: se.Aligned(rank=True), TypeError, "rank: expected an integer; got bool"),
        (lambda: se.Randomized(law_parameter="a"), ValueError, "law_parameter: law 'l1' takes"),
        (lambda: se.Randomized(law="hybrid", law_parameter="a"), TypeError, "law_parameter: .*str"),
        (lambda: se.Randomized(law="hybrid", law_parameter=2), ValueError, "law_parameter: .*2"),
        (lambda: se.Magnitude(law="l1"), TypeError, "unexpected keyword argument 'law'"),
        (lambda: se.Randomized(rank=3), TypeError, "unexpected keyword argument 'rank'"),
    ],
)
def test_mistakes_name_the_argument(make, error, message):
    """Catches a mistake that passes, or that fails as something that names no argument."""
    with pytest.raises(error, match=message):
        make()
