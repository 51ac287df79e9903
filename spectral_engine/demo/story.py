"""The demo's story: three ways to make 90 % zeros, what each keeps, and what is gained."""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spectral_engine._util.threads import one_thread
from spectral_engine.compression.model import compress
from spectral_engine.demo.data import fashion_mnist_test, to_tensors
from spectral_engine.demo.lenet import accuracy, load_pretrained
from spectral_engine.pruning.model import prune
from spectral_engine.pruning.report import PruneReport

#: The sparsity that the story is told at, and those that its figure shows.
SPARSITY = 0.9
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
#: Images that calibration sees, without their labels; accuracy is that on the others.
IMAGES = 1000
#: Leading singular directions of fc1, which has 88 % of the weights, that are compared.
RANK = 64
#: The layer whose time shows what a network that does not fit the cache gains.
LARGE = 4096
#: The most turns of a timing, and the seconds after which there are no more.
_TURNS, _SECONDS = 200, 1.0


@dataclass(frozen=True)
class Way:
    """A way to prune: its name in tables, the recipe's name, and whether it sees images."""

    label: str
    recipe: str
    calibrated: bool = False


WAYS = (
    Way("by magnitude", "magnitude"),
    Way("without data, inputs made up", "auto"),
    Way(f"with {IMAGES:,} images, no labels", "auto", calibrated=True),
)


@dataclass(frozen=True)
class Outcome:
    """What a way gave at one sparsity.

    sparsity: reached. accuracy: on the images that calibration did not see.
    kept: how much of fc1's leading part U diag(S) V^T is left in the pruned P,
        1 - ||U^T P V - diag(S)||_F / ||S||: 1 where all is, 0 for a matrix of zeros.
    values: what P still does along each leading singular direction, u_i^T P v_i, (RANK,).
    """

    way: Way
    sparsity: float
    accuracy: float
    kept: float
    values: NDArray[np.float64]
    report: PruneReport
    model: nn.Module

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "way": self.way.label, "recipe": self.way.recipe, "sparsity": self.sparsity,
            "accuracy": self.accuracy, "spectrum_kept": self.kept,
        }  # fmt: skip


@dataclass(frozen=True)
class Gain:
    """Something before and after compressing, in bytes or in seconds; medians of turns."""

    what: str
    before: float
    after: float

    @property
    def factor(self) -> float:
        """How many times smaller, or faster."""
        return self.before / self.after

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "factor": self.factor}


class Story:
    """The network and its images, and what was found.

    Args:
        seed: of the draws.
        images: how many of the test images are used.
    """

    def __init__(self, seed: int = 0, images: int | None = None) -> None:
        pixels, labels = to_tensors(*fashion_mnist_test())
        self.seed, self.dense = seed, load_pretrained()
        self.inputs = pixels[:IMAGES]
        self.images, self.labels = pixels[IMAGES:images], labels[IMAGES:images]
        U, S, Vh = torch.linalg.svd(self.dense.fc1.weight.detach().double(), full_matrices=False)
        self._left, self._right = U[:, :RANK], Vh[:RANK].mT
        self.values: NDArray[np.float64] = S[:RANK].numpy()
        self.accuracy = accuracy(self.dense, self.images, self.labels)

    def tell(self, way: Way, sparsity: float = SPARSITY) -> Outcome:
        """Prune a copy in one way, and measure it."""
        model = copy.deepcopy(self.dense)
        with one_thread():
            report = prune(
                model, way.recipe, sparsity, seed=self.seed, progress=False, masks=False,
                calibration=[self.inputs] if way.calibrated else None,
                measure=sparsity == SPARSITY,
            )  # fmt: skip
        found = accuracy(model, self.images, self.labels)
        left = (self._left.mT @ model.fc1.weight.detach().double() @ self._right).numpy()
        lost = np.linalg.norm(left - np.diag(self.values)) / np.linalg.norm(self.values)
        return Outcome(
            way, report.sparsity, found, 1.0 - float(lost), left.diagonal(), report, model
        )

    def gains(self, outcome: Outcome, large: int = LARGE) -> list[Gain]:
        """What compressing a pruned network gains: bytes, and time of a step with one image.

        The network fits the processor's cache; a layer of `large` x `large` with the same share
        of zeros, which does not, is timed beside it.
        """
        pruned = copy.deepcopy(outcome.model)
        report = compress(pruned)
        linear = nn.Linear(large, large, bias=False)
        nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(self.seed))
        layer = nn.Sequential(linear)
        prune(layer, "magnitude", SPARSITY, progress=False, masks=False)
        packed = copy.deepcopy(layer)
        compress(packed)
        steps = [
            ("this network, one image", self.dense, pruned, self.inputs[:1]),
            (f"a layer of {large} x {large}", layer, packed, torch.ones(1, large)),
        ]
        return [
            Gain("bytes", report.dense_bytes, report.bytes),
            *(Gain(what, *_in_turns(a, b, images)) for what, a, b, images in steps),
        ]


def warm_up() -> None:
    """Have compiled what the story runs, on small networks, so that no time is a compiler's."""
    with torch.random.fork_rng(devices=[]):
        inputs = torch.randn(64, 32)
        for way in WAYS:
            model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
            with one_thread():
                prune(
                    model, way.recipe, SPARSITY, progress=False, masks=False, measure=True,
                    calibration=[inputs] if way.calibrated else None,
                )  # fmt: skip
        linear = nn.Linear(1024, 1024)  # enough for a product by several threads
    linear.weight.data.mul_(100.0).round_()  # ties, of which some are kept
    wide = nn.Sequential(linear)
    prune(wide, "magnitude", SPARSITY, progress=False, masks=False)
    for pruned, width in ((model, 32), (wide, 1024)):
        compress(pruned)
        pruned(torch.ones(1, width))


def _in_turns(one: nn.Module, other: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """The median seconds of a forward pass of each, taken in turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with one_thread(), torch.inference_mode():
        start = time.perf_counter()
        for turn in range(_TURNS):
            if turn > 5 and time.perf_counter() - start > _SECONDS:
                break
            for model, found in zip((one, other), seconds, strict=True):
                began = time.perf_counter()
                model(images)
                if turn > 1:
                    found.append(time.perf_counter() - began)
    return median(seconds[0]), median(seconds[1])


def lines(story: Story, outcomes: Sequence[Outcome], gains: Sequence[Gain]) -> list[str]:
    """The story on one screen of 80 columns."""
    size = sum(layer.size for layer in outcomes[0].report.layers)
    said = [
        f"LeNet-300-100, {size:,} weights, trained on Fashion-MNIST: it tells {story.accuracy:.1%}",
        f"of {len(story.labels):,} images right. Now {SPARSITY:.0%} of its weights become zero:",
        "",
        f"{'':31}{'right':>8}   {'':20}  {'spectrum kept':>14}",
    ]
    for one in outcomes:
        said.append(
            f"  {one.way.label:<29}{one.accuracy:>8.1%}   {_bar(one.accuracy)}  {one.kept:>14.1%}"
        )
    said += [
        f"  {'dense':<29}{story.accuracy:>8.1%}   {_bar(story.accuracy)}  {1.0:>14.1%}",
        "",
        "Compressed, the zeros are not stored:",
        "",
        f"{'':31}{'before':>11}{'after':>11}",
    ]
    for gain in gains:
        before, after = (_quantity(gain, value) for value in (gain.before, gain.after))
        said.append(f"  {gain.what:<29}{before:>11}{after:>11}   {_factor(gain)}")
    return said


def _bar(share: float, width: int = 20) -> str:
    full = round(share * width)
    return "█" * full + "·" * (width - full)


def _quantity(gain: Gain, value: float) -> str:
    return f"{value / 1e3:,.0f} kB" if gain.what == "bytes" else f"{1e6 * value:,.0f} us"


def _factor(gain: Gain) -> str:
    if gain.what == "bytes":
        return f"{gain.factor:.1f} x smaller"
    if gain.factor >= 1.0:
        return f"{gain.factor:.1f} x faster"
    return f"{1.0 / gain.factor:.1f} x slower, in cache"
