"""Many passes cost the depth of a network: what is final is kept, and is what would be run."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

import spectral_engine as se
from tests.support.calibration_cases import by_row, calibrator, seeded


class Block(nn.Module):
    """A residual block that may change in place what it is given."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.inplace = nn.Linear(8, 16), nn.Linear(16, 8), inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change = self.down(torch.relu(self.up(x)))
        return x.add_(change) if self.inplace else x + change


class Deep(nn.Module):
    """Blocks after one another, the first of which is also read at the end."""

    def __init__(self, depth: int = 6, inplace: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(inplace and i % 2 == 1) for i in range(depth))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = None
        for block in self.blocks:
            x = block(x)
            first = x.clone() if first is None else first
        return self.head(x + first)


class Tied(nn.Module):
    """A head that is also the embedding, pruned before the layer that is seen last."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.last = nn.Linear(20, 8)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.head(self.embed(ids)))


class Beside(nn.Module):
    """A module that leaves for another what does not go through its output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.left = [torch.zeros(())]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x)) + self.left[0])


class Leaves(nn.Linear):
    """Leaves its input's mean in a list that another module reads."""

    def __init__(self, left: list[torch.Tensor]) -> None:
        super().__init__(8, 8)
        self.left = left

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.left[0] = x.mean()
        return super().forward(x)


def leaving() -> nn.Module:
    model = Beside()
    model.a = Leaves(model.left)
    return model


def functional_tie() -> nn.Module:
    """A weight that is used before its own module is called, where no hook sees it."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.early = Early(self.b)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.b(self.a(self.early(x))))

    class Early(nn.Module):
        def __init__(self, other: nn.Linear) -> None:
            super().__init__()
            self.other = [other]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return functional.linear(x, self.other[0].weight)

    model = Model()
    model.c = nn.Linear(8, 8)
    return model


X = [torch.randn(6, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
IDS = [torch.randint(0, 20, (5, 7), generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize(
    ("build", "batches"),
    [
        (Deep, X), (lambda: Deep(inplace=True), X), (Tied, IDS), (leaving, X), (functional_tie, X),
        (lambda: nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU(True)) for _ in "ab")), X),
        (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 2),
         [x.reshape(3, 2, 8) for x in X]),
    ],
)  # fmt: skip
def test_what_is_kept_is_what_would_be_run(build, batches, asymmetric):
    """Catches outputs of layers that were pruned since, aliases that a later module changes, and
    what modules leave behind for others."""
    found = []
    for keep in (False, True):
        model = seeded(build)
        least = calibrator(model, batches, sequential=True, asymmetric=asymmetric).bytes
        calibration = se.Calibration(
            [batch.clone() for batch in batches], sequential=True, asymmetric=asymmetric,
            max_bytes=(1 << 28) if keep else least,
        )  # fmt: skip
        se.prune(model, by_row(0.5), calibration=calibration)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_passes_cost_the_depth_and_not_its_square():
    """Catches passes that begin at the start of the network."""
    runs, original = {}, functional.linear
    for depth in (4, 8, 16):
        model = seeded(lambda depth=depth: Deep(depth))
        calls = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                functional, "linear", lambda *a, calls=calls: (calls.append(1), original(*a))[1]
            )
            batches = [torch.randn(2, 8) for _ in range(40)]
            report = se.prune(model, calibration=se.Calibration(batches, sequential=True))
        assert report.calibration.passes == 2 * depth + 1
        runs[depth] = len(calls) / len(batches)
    assert all(runs[double] < 2.6 * runs[half] for half, double in pairwise(sorted(runs)))
