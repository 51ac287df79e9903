"""The budgets as values: what they aim at, and what cannot be written down."""

import numpy as np
import pytest

import spectral_engine as se


def test_targets():
    """Catches a default, a pattern's own sparsity, or an error's lack of one that is lost."""
    assert se.Uniform().target == 0.9
    assert se.ERK(0.5).target == 0.5
    assert se.Pattern("2:4").target == 0.5
    assert se.Pattern("16x16").target == 0.9
    assert se.Pattern("16x16", shared=se.ERK(0.7)).target == 0.7
    assert se.MaxError(0.1).target is None


def test_another_sparsity():
    """Catches a sparsity that a copy ignores, and one that loses the rest of the budget."""
    assert se.ERK(0.5, floor=0.1, group="row").at(0.7) == se.ERK(0.7, floor=0.1, group="row")
    assert se.Pattern("2:4").at(0.5) == se.Pattern("2:4") == se.Pattern("2:4", 0.5)
    assert se.Pattern("4x4", shared=se.Global(0.5)).at(0.6).target == 0.6
    assert se.Uniform(np.float32(0.5)) == se.Uniform(0.5)
    with pytest.raises(ValueError, match=r"sparsity: MaxError\(0\.1\)"):
        se.MaxError(0.1).at(0.5)
    with pytest.raises(ValueError, match=r"sparsity: pattern '2:4' has 0\.5"):
        se.Pattern("2:4").at(0.9)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: se.Uniform(1.0), ValueError, r"sparsity: .*\[0, 1\); got 1.0"),
        (lambda: se.Uniform("half"), TypeError, "sparsity: expected a number; got str"),
        (lambda: se.Uniform(True), TypeError, "sparsity: expected a number; got bool"),
        (lambda: se.Uniform(group="column"), ValueError, "group: expected one of tensor, row"),
        (lambda: se.Uniform(0.5, floor=0.1), TypeError, "unexpected keyword argument 'floor'"),
        (lambda: se.ERK(0.5, floor="half"), TypeError, "floor: expected a number"),
        (lambda: se.ERK(0.5, floor=-0.1), ValueError, r"floor: .*\[0, 1\]; got -0.1"),
        (lambda: se.MaxError(1.0), ValueError, r"error: .*\[0, 1\); got 1.0"),
        (lambda: se.MaxError(0.1, together=1), TypeError, "together: expected True or False"),
        (se.MaxError, TypeError, "error"),
        (lambda: se.Pattern("4:2"), ValueError, "shape: expected N of M"),
        (lambda: se.Pattern(24), TypeError, "shape: expected a string"),
        (lambda: se.Pattern("2:4", 0.9), ValueError, "sparsity: pattern '2:4' has 0.5"),
        (lambda: se.Pattern("2:4", group="row"), ValueError, "group: pattern '2:4'"),
        (lambda: se.Pattern("2:4", shared=se.ERK()), ValueError, "shared: pattern '2:4'"),
        (lambda: se.Pattern("4x4", 0.5, shared=se.ERK()), ValueError, "shared: decides the"),
        (lambda: se.Pattern("4x4", shared=0.5), TypeError, "shared: expected a budget such as"),
    ],
)
def test_mistakes_name_the_argument(make, error, message):
    """Catches what excludes each other and can be written down all the same."""
    with pytest.raises(error, match=message):
        make()
