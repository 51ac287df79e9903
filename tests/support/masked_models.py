"""What the tests of masks share: two models, their training, and what a mask must hold."""

import torch
from torch import nn

import spectral_engine as se


class Net(nn.Module):
    """A convolution, a recurrent layer, attention, linear layers, an embedding tied to a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.gru = nn.GRU(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = self.conv(x.mT).mT
        x, _ = self.gru(x)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.body(x))


MASKED = {
    "embed.weight", "conv.weight", "gru.weight_ih_l0", "gru.weight_hh_l0",
    "attention.in_proj_weight", "attention.out_proj.weight", "body.0.weight", "body.2.weight",
}  # fmt: skip


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def mlp(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def loss_of(model: nn.Module, step: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    if isinstance(model, Net):
        tokens = torch.randint(20, (3, 5), generator=generator)
        return nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    x = torch.randn(6, 8, generator=generator).to(next(model.parameters()))
    return (model(x) - 1.0).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        optimizer.step(closure)


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: model.get_parameter(name) == 0 for name in MASKED}


def check(model: nn.Module, kept: dict[str, torch.Tensor]) -> None:
    """Every pruned entry is zero, and others have moved on."""
    assert kept
    for name, entries in kept.items():
        weight = model.get_parameter(name)
        assert not weight[~entries].any(), name
        assert weight[entries].any(), name


def kept_by(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: mask.unpack() for name, mask in se.masks(model).items()}
