"""Along which axis of experts the inputs lie: patterns, rows and moments hang on it."""

import pytest
import torch
from torch import nn

import spectral_engine as se

HIDDEN, INNER = 32, 16


def experts(name: str, into: tuple[int, ...], out_of: tuple[int, ...], **told) -> nn.Module:
    """A module of a class of this name, with a fused gate and value."""
    module = type(name, (nn.Module,), {})()
    torch.manual_seed(0)
    module.gate_up_proj = nn.Parameter(torch.randn(into))
    module.down_proj = nn.Parameter(torch.randn(out_of))
    for attribute, value in told.items():
        setattr(module, attribute, value)
    return module


def two_of_four(weight: torch.Tensor, axis: int) -> bool:
    groups = weight.detach().movedim(axis, -1).unflatten(-1, (-1, 4))
    return bool(((groups != 0).sum(-1) == 2).all())


OUT_FIRST = ((4, 2 * INNER, HIDDEN), (4, HIDDEN, INNER))
IN_FIRST = ((4, HIDDEN, 2 * INNER), (4, INNER, HIDDEN))
ALIKE = ((4, HIDDEN, HIDDEN), (4, HIDDEN, HIDDEN))


@pytest.mark.parametrize(
    ("name", "shapes", "told", "axis"),
    [
        ("SomeExperts", OUT_FIRST, {}, 2),
        ("SomeExperts", IN_FIRST, {}, 1),
        ("SomeExperts", ALIKE, {"is_transposed": True}, 1),
        ("SomeExperts", ALIKE, {"is_transposed": False}, 2),
        ("GptOssExperts", ALIKE, {"is_transposed": False}, 2),
        ("AriaExperts", ALIKE, {}, 1),
        ("OpenAIPrivacyFilterExperts", ALIKE, {}, 1),
        ("GptOssExperts", ALIKE, {}, 1),
        ("Llama4TextExperts", ALIKE, {}, 1),
        ("SomeExperts", ALIKE, {}, 2),
    ],
)
def test_patterns_lie_along_the_inputs(name, shapes, told, axis):
    """Catches N:M along the outputs of experts stored (experts, in, out), known by name, by what
    the module says of itself, or by the shapes of its two matrices."""
    module = experts(name, *shapes, **told)
    se.prune(module, se.Recipe(budget=se.Pattern("2:4")))
    for weight in (module.gate_up_proj, module.down_proj):
        assert two_of_four(weight, axis)
        assert not two_of_four(weight, 3 - axis)


@pytest.mark.parametrize("square", [16, 32, 64])
def test_shapes_decide_whatever_the_sizes(square):
    """Catches a reading that fits both ways: a hidden size that is once or twice the inner one."""
    for into, out_of, axis in (
        ((2, 2 * INNER, square), (2, square, INNER), 2),
        ((2, square, 2 * INNER), (2, INNER, square), 1),
    ):
        module = experts("SomeExperts", into, out_of)
        se.prune(module, se.Recipe(budget=se.Pattern("2:4")))
        assert two_of_four(module.gate_up_proj, axis)
