"""torch.compile and torch.export of masked models."""

import pytest
import torch

import spectral_engine as se
from tests.support.masked_models import check, kept_by, loss_of, mlp, train


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on import
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_forward_and_backward(backend):
    """Catches a graph break or a gradient that is not masked under torch.compile, for a model
    pruned before and pruned again after it was compiled."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer)
    se.prune(model, sparsity=0.5)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for sparsity in (None, 0.8):
        if sparsity is not None:
            se.prune(compiled, sparsity=sparsity)
        kept = kept_by(model)
        x = torch.randn(6, 8)
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
        model.zero_grad()
        compiled(x).square().sum().backward()
        assert not model[0].weight.grad[~kept["0.weight"]].any()
        assert model[0].weight.grad.any()
        train(compiled, optimizer)
        check(model, kept)
    assert set(se.masks(compiled)) == {"0.weight", "2.weight"}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, on import
def test_compiled_optimizer_step():
    """Catches an optimizer step that is compiled without its hooks."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer)
    se.prune(model, sparsity=0.5)
    kept = kept_by(model)
    step = torch.compile(optimizer.step, backend="eager")
    for index in range(2):
        optimizer.zero_grad()
        loss_of(model, index).backward()
        step()
    check(model, kept)


def test_exported_program():
    """Catches a masked model that torch.export refuses, and a mask that gets into the program."""
    model = mlp().eval()
    se.prune(model, sparsity=0.5)
    x = torch.randn(6, 8)
    for strict in (False, True):
        program = torch.export.export(model, (x,), strict=strict)
        assert torch.equal(program.module()(x), model(x))
        assert set(program.state_dict) == set(model.state_dict())
        assert not program.constants
