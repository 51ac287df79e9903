"""What a model takes is found out, and inputs for it are simulated."""

import pytest
import torch
from torch import nn

import spectral_engine as se
from spectral_engine.datafree.dream import dreamed
from spectral_engine.datafree.entry import entry_of
from spectral_engine.datafree.simulate import output_error, outputs


class Reader(nn.Module):
    """Tokens to one number each, by a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.reader = nn.GRU(8, 6, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.reader(self.words(tokens))[0]


class Wave(nn.Module):
    """Samples (N, 512) of a sound, which no other length fits."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, (16, 1), (16, 1))
        self.last = nn.Linear(64, 3)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        return self.last(self.convolution(sound[:, None, :, None]).flatten(1))


def images(side: int) -> nn.Sequential:
    """A classifier of images with this side."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(side * side, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("model", "shape", "vocabulary"),
    [
        (images(28), (3, 28, 28), 0),
        (images(64), (3, 64, 64), 0),
        (Wave(), (512,), 0),
        (Reader(), (16,), 50),
        (nn.Linear(6, 2), (6,), 0),
        (nn.Sequential(nn.Conv1d(2, 3, 5), nn.Flatten(), nn.Linear(3 * 60, 2)), (2, 64), 0),
        (nn.LSTM(5, 4, batch_first=True), (32, 5), 0),
    ],
)
def test_what_a_model_takes_is_found(model, shape, vocabulary):
    """Catches a size that is guessed and not tried, and a kind of first layer that is passed
    over."""
    found = entry_of(model, torch.Generator().manual_seed(0))
    assert (found.shape, found.vocabulary) == (shape, vocabulary)
    samples = found.draw(3, torch.Generator().manual_seed(1))
    assert samples.shape == (3, *shape)
    model(samples)


def test_multiplications_are_counted():
    """Catches a cost that misses a layer, by which the number of samples is chosen."""
    found = entry_of(images(28), torch.Generator().manual_seed(0))
    assert found.macs == 14 * 14 * 27 * 4 + 28 * 28 * 5


class Two(nn.Module):
    """Takes two things."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.layer(one + other)


def test_what_cannot_be_simulated_is_said():
    """Catches a guess about a model that takes more than one input, and an error without a
    reason."""
    with pytest.raises(ValueError, match="its forward takes 2 arguments"):
        se.simulate(Two())
    with pytest.raises(ValueError, match="its weights are elsewhere"):
        se.simulate(nn.Linear(4, 2, device="meta"))
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module; got int"):
        se.simulate(3)
    with pytest.raises(ValueError, match="has no weights"):
        se.simulate(nn.Flatten())


def test_simulating_changes_nothing_and_repeats():
    """Catches gradients, buffers, flags or a random state left behind, and inputs that differ from
    call to call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    one, other = se.simulate(model, seed=3), se.simulate(model, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(map(torch.equal, one.batches + one.apart, other.batches + other.apart))
    assert not torch.equal(one.batches[0], se.simulate(model, seed=4).batches[0])
    assert not torch.equal(one.batches[0][:16], one.apart[0][:16])
    assert not any(batch.requires_grad for batch in one.batches)


def test_dreams_come_nearer_to_what_is_remembered():
    """Catches steps in the wrong direction: the answers become surer, and the means that BatchNorm
    sees come nearer to those that it remembers."""
    torch.manual_seed(0)
    model = images(28)
    norm = model[1]
    norm.running_mean.copy_(torch.tensor([0.5, -0.5, 1.0, 0.0]))
    start = torch.randn(32, 3, 28, 28)

    def distance(inputs: torch.Tensor) -> float:
        seen = model[0](inputs).mean((0, 2, 3))
        return float((seen - norm.running_mean).square().sum())

    def sureness(inputs: torch.Tensor) -> float:
        return float(model(inputs).softmax(1).max(1).values.mean())

    with torch.no_grad():
        found = dreamed(model, start, 30, torch.Generator().manual_seed(0), lambda m, x: m(x))
        assert distance(found) < 0.7 * distance(start)
        assert sureness(found) > sureness(start)


def test_error_of_outputs():
    """Catches an error that is not relative to how much the outputs differ, and NaN taken for a
    number."""
    dense = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert output_error(dense, dense) == 0.0
    assert output_error(dense + 100.0, dense + 101.0) == pytest.approx(2.0**0.5)
    assert output_error(dense, dense * float("nan")) == float("inf")
    assert output_error(dense, dense[:1]) == float("inf")
    assert output_error(torch.ones(2, 2), torch.zeros(2, 2)) == float("inf")
    layer = nn.Linear(2, 2)
    assert torch.equal(outputs(layer, [dense, dense]), layer(torch.cat([dense, dense])).detach())
