"""What the refits give does not hang on torch's number of threads."""

from collections.abc import Iterator

import pytest
import torch

from spectral_engine.matrix.moments import Moments
from spectral_engine.refitting.alps import alps_mask
from spectral_engine.refitting.apply import MaskBudget
from spectral_engine.refitting.least_squares import least_squares
from spectral_engine.refitting.sparsegpt import sparsegpt
from spectral_engine.refitting.spectral import spectral_refit

#: Few rows, few columns, and neither.
SHAPES = [(1, 64), (5, 64), (10, 333), (7, 512), (300, 100), (64, 300)]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """torch's number of threads comes back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_calibrated_refits_give_the_same_bits_on_any_number_of_threads(
    shape: tuple[int, int],
) -> None:
    """Catches products that BLAS divides between threads by rows, or into narrow panels: of layers
    with less than 16 outputs, such as a classifier, and of those with 100 inputs the values
    differed between one, two and four threads."""
    m, n = shape
    torch.manual_seed(0)
    weight, mask = torch.randn(m, n), torch.rand(m, n) < 0.5
    inputs = torch.randn(2 * n, n) @ torch.randn(n, n) / n**0.5
    double = Moments.of(inputs, n)
    moments = Moments(double.second.float(), double.mean, double.count)
    keep_largest = MaskBudget(0.7, "row").keep_largest
    found = []
    for count in (1, 2, 3, 4):
        torch.set_num_threads(count)
        found.append(
            (
                least_squares(weight, mask, moments),
                sparsegpt(weight, moments, 0.7, by_row=True),
                alps_mask(weight, moments, keep_largest, steps=10),
            )
        )
        assert torch.get_num_threads() == count
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


@pytest.mark.parametrize("shape", [(100, 300), (300, 300), (24, 777), (1, 50)], ids=str)
def test_the_spectral_refit_gives_the_same_bits_on_any_number_of_threads(
    shape: tuple[int, int],
) -> None:
    """Catches a sum over the whole matrix, and products with a few singular vectors, that are
    divided between threads."""
    torch.manual_seed(0)
    weight, mask = torch.randn(shape), torch.rand(shape) < 0.5
    found = []
    for count in (1, 2, 3, 4):
        torch.set_num_threads(count)
        found.append(spectral_refit(weight, mask))
    assert all(torch.equal(found[0], other) for other in found[1:])
