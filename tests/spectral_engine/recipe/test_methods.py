"""The preset methods and what may override them."""

import itertools

import numpy as np
import pytest
from spectral_kernels import LAW_NAMES

from spectral_engine.recipe.methods import PRESETS, Method, resolve


def test_presets_are_the_documented_rows():
    """Catches a preset that changes its score, its law or its rescaling unnoticed."""
    rows = {
        name: (preset.score, preset.law, preset.rescale, preset.needs_low_rank)
        for name, preset in PRESETS.items()
    }
    assert rows == {
        "magnitude": ("magnitude", "threshold", False, False),
        "randomized": ("magnitude", "l1", True, False),
        "principal": ("mixture", "threshold", False, True),
        "aligned": ("aligned", "threshold", False, True),
        "auto": ("magnitude", "threshold", False, False),
    }


@pytest.mark.parametrize(("method", "law"), [*itertools.product(PRESETS, LAW_NAMES)])
def test_law_overrides(method, law):
    """Catches rescaling by default under a spectral score, where it has no bound, or under a
    threshold, where nothing is drawn; and an unbiased law that is not rescaled."""
    chosen = resolve(method, law=law)
    assert chosen.law == law
    assert chosen.score == PRESETS[method].score
    assert chosen.rescale == (law != "threshold" and method in ("magnitude", "randomized", "auto"))


def test_explicit_rescale_wins():
    """Catches a `rescale` that the law's default overwrites."""
    assert not resolve("randomized", rescale=False).rescale
    assert resolve("principal", law="l1", rescale=True).rescale


def test_mixture_changes_the_score():
    """Catches a share that is stored without the score that uses it, and a lost share."""
    assert resolve("principal", mixture=0.25) == Method(
        "principal", "mixture", "threshold", rescale=False, mixture=0.25
    )
    assert resolve("principal", mixture=np.float32(0.0)).score == "principal"
    assert resolve("principal", mixture=1).score == "mixture"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "nope"}, ValueError, "method: expected one of magnitude, .*got 'nope'"),
        ({"method": ["magnitude"]}, ValueError, "method: expected one of"),
        ({"law": "nope"}, ValueError, "law: expected one of threshold, .*got 'nope'"),
        ({"law": ["l1"]}, ValueError, "law: expected one of"),
        ({"rescale": 1}, TypeError, "rescale: expected True, False or None; got 1"),
        ({"rescale": True}, ValueError, "rescale: law 'threshold' draws nothing"),
        ({"mixture": 0.5}, ValueError, "mixture: only method 'principal'"),
        ({"method": "principal", "mixture": 1.5}, ValueError, r"mixture: .*\[0, 1\]; got 1.5"),
        ({"method": "principal", "mixture": float("nan")}, ValueError, "mixture: .*got nan"),
        ({"method": "principal", "mixture": True}, TypeError, "mixture: .*number; got bool"),
        ({"method": "principal", "mixture": "a"}, TypeError, "mixture: .*number; got str"),
        ({"law_parameter": "a"}, TypeError, "law_parameter: .*number; got str"),
        ({"refit": "nope"}, ValueError, "refit: expected None or one of scale, .*; got 'nope'"),
        ({"refit": ["scale"]}, ValueError, "refit: expected None or one of scale"),
    ],
)
def test_bad_options(options, error, message):
    """Catches a mistake that passes, or that fails as something that names no argument."""
    with pytest.raises(error, match=message):
        resolve(**{"method": "magnitude", **options})
