"""Refits and bias correction of a whole model."""

import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.layers.bias import add_to_bias
from spectral_engine.recipe.refits import REFITS
from tests.support.calibration_cases import Mlp, batches, by_row, layers_of, seeded


@pytest.mark.parametrize("refit", REFITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_refit_prunes_a_model(refit, dtype):
    """Catches a combination of refit and dtype that fails, or misses the sparsity."""
    model = Mlp().to(dtype)
    data = [batch.to(dtype) for batch in batches()]
    kind = REFITS[refit]
    chosen = kind() if kind is se.BiasCorrection else kind(bias_correction=True)
    report = se.prune(model, by_row(0.5, chosen), calibration=data)
    assert all(layer.sparsity == 0.5 for layer in report.layers)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert report.recipes[0].refit == chosen


def test_refit_helps_the_whole_model():
    """Catches a refit that is computed and not written back; and asymmetric fits that are not
    nearer to the dense model's outputs."""
    generator = torch.Generator().manual_seed(1)
    few, more = torch.randn(8, 3, generator=generator), torch.randn(3, 8, generator=generator)
    *data, apart = (torch.tanh(batch @ few @ more) for batch in batches(21, 200))
    dense = Mlp(48)
    expected = dense(apart).detach()

    def error(refit=None, asymmetric=False) -> float:
        model = Mlp(48)
        calibration = se.Calibration(data, sequential=True, asymmetric=asymmetric)
        se.prune(model, by_row(0.6, refit), calibration=calibration)
        with torch.no_grad():
            return float((model(apart) - expected).square().mean())

    plain = error()
    fitted = error(se.LeastSquares())
    corrected = error(se.LeastSquares(bias_correction=True))
    assert fitted < 0.8 * plain
    assert corrected < 0.8 * plain
    assert error(se.LeastSquares(bias_correction=True), asymmetric=True) < corrected
    assert error(se.ALPS()) < fitted


BIASED = [
    (lambda: nn.Linear(6, 5), torch.randn(30, 6)),
    (lambda: nn.Conv2d(4, 6, 3, groups=2), torch.randn(5, 4, 6, 6)),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(5, 4, 6, 6)),
]


@pytest.mark.parametrize(("build", "x"), BIASED)
def test_bias_correction_in_the_model(build, x):
    """Catches a shift that is added to the bias of another feature."""
    model = nn.Sequential(seeded(build))
    before = model(x)
    se.prune(model, se.Recipe(refit=se.BiasCorrection()), 0.5, calibration=x)
    axes = [0, *range(2, x.ndim)]
    assert torch.allclose(model(x).mean(axes), before.mean(axes), atol=1e-5)


def test_bias_of_parts():
    """Catches the bias of one gate, or of a query, that goes to another."""
    for module, name, rows in (
        (nn.LSTM(3, 4), "weight_ih_l0[cell]", slice(8, 12)),
        (nn.MultiheadAttention(4, 2), "in_proj_weight[k]", slice(4, 8)),
        (nn.MultiheadAttention(4, 2, kdim=3), "v_proj_weight", slice(8, 12)),
    ):
        [layer] = [layer for layer in layers_of(module) if layer.name == name]
        bias = module.in_proj_bias if "proj" in name else module.bias_ih_l0
        before = bias.detach().clone()
        add_to_bias(layer, torch.arange(1.0, 5.0))
        changed = torch.zeros_like(before)
        changed[rows] = torch.arange(1.0, 5.0)
        assert torch.allclose(bias.detach() - before, changed, atol=1e-6)
