"""The demo's work: prune the network under one setting, and measure what that did."""

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from spectral_kernels import LAW_NAMES
from spectral_kernels.spectra import singular_values

from spectral_engine._util.threads import one_thread
from spectral_engine.demo.data import fashion_mnist_test, to_tensors
from spectral_engine.demo.lenet import LeNet300100, accuracy, load_pretrained
from spectral_engine.pruning.model import prune
from spectral_engine.recipe.methods import Aligned, Magnitude, Principal, Randomized
from spectral_engine.recipe.recipe import Recipe
from spectral_engine.recipe.refits import Scale

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
#: Leading singular values that are compared.
RANK = 64


@dataclass(frozen=True)
class Setting:
    """A recipe, and how tables and plots call it."""

    label: str
    recipe: Recipe


SETTINGS = (
    Setting("magnitude", Recipe(Magnitude())),
    Setting("magnitude + scale", Recipe(Magnitude(), refit=Scale())),
    *(
        Setting(f"randomized {law}", Recipe(Randomized(law=law)))
        for law in LAW_NAMES
        if law != "threshold"
    ),
    Setting("principal", Recipe(Principal())),
    Setting("principal l1", Recipe(Principal(law="l1"))),
    Setting("principal l2", Recipe(Principal(law="l2"))),
    Setting("aligned", Recipe(Aligned())),
)


@dataclass(frozen=True)
class DemoRow:
    """What one setting gave at one sparsity. Errors are those of fc1, with 88 % of the weights.

    setting, requested: the setting, and the sparsity that was asked for
    sparsity: the fraction of zeros that came of it
    accuracy: on the 10,000 test images
    spectral, frobenius: relative errors ||A - S|| / ||A||
    singular_values: mean relative error of the leading RANK
    milliseconds: pruning all layers, nothing else
    before, after: the leading RANK singular values, (RANK,)
    """

    setting: Setting
    requested: float
    sparsity: float
    accuracy: float
    spectral: float
    frobenius: float
    singular_values: float
    milliseconds: float
    before: NDArray[np.float64]
    after: NDArray[np.float64]

    @property
    def name(self) -> str:
        """The setting and the sparsity."""
        return f"{self.setting.label}, {self.requested:.0%}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the singular values themselves."""
        plain = {key: value for key, value in vars(self).items() if key not in ("before", "after")}
        return {**plain, "setting": self.setting.label}


def _values(matrix: torch.Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = singular_values(matrix.detach()).double().numpy()
    return values


@lru_cache(maxsize=1)
def _dense_values() -> NDArray[np.float64]:
    return _values(_loaded()[0].fc1.weight)


@lru_cache(maxsize=1)
def _loaded() -> tuple[LeNet300100, torch.Tensor, torch.Tensor]:
    images, labels = to_tensors(*fashion_mnist_test())
    return load_pretrained(), images, labels


def dense_accuracy() -> float:
    """Test accuracy before pruning."""
    return accuracy(*_loaded())


def warm_up(seed: int) -> None:
    """Prune under every setting once, so that no time in the table is a compiler's."""
    with one_thread():
        for setting in SETTINGS:
            prune(copy.deepcopy(_loaded()[0]), setting.recipe, seed=seed, progress=False)


def measure(setting: Setting, sparsity: float, seed: int) -> DemoRow:
    """Prune a copy of the network and measure it.

    The errors are those of `se.errors`, computed from whole spectra without vectors; the spectrum
    of the dense network is computed once.

    Args:
        setting: how it is pruned.
        sparsity: fraction of zeros.
        seed: of the draws.
    """
    dense, images, labels = _loaded()
    model = copy.deepcopy(dense)
    with one_thread():
        report = prune(model, setting.recipe, sparsity, seed=seed, progress=False)
        whole, after = _dense_values(), _values(model.fc1.weight)[:RANK]
        before, lost = whole[:RANK], _values(dense.fc1.weight - model.fc1.weight)
    return DemoRow(
        setting=setting,
        requested=sparsity,
        sparsity=report.sparsity,
        accuracy=accuracy(model, images, labels),
        spectral=float(lost[0] / whole[0]),
        frobenius=float(np.linalg.norm(lost) / np.linalg.norm(whole)),
        singular_values=float(np.mean(np.abs(after - before) / before)),
        milliseconds=1e3 * sum(layer.seconds for layer in report.layers),
        before=before,
        after=after,
    )


def table(rows: list[DemoRow], dense: float) -> Table:
    """All rows, a section for each sparsity; the best accuracy of each section in bold."""
    shown = Table(
        title=f"LeNet-300-100 on Fashion-MNIST, one shot; dense accuracy {dense:.2%}",
        caption=f"errors are relative, of fc1; values: its leading {RANK} singular values, mean",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    shown.add_column("method and law", no_wrap=True)
    for name in ("zeros", "accuracy", "spectral", "Frobenius", "values", "ms"):
        shown.add_column(name, justify="right", no_wrap=True)
    best = {
        sparsity: max(row.accuracy for row in rows if row.requested == sparsity)
        for sparsity in {row.requested for row in rows}
    }
    previous = None
    for row in rows:
        if previous not in (None, row.requested):
            shown.add_section()
        previous = row.requested
        shown.add_row(
            row.setting.label,
            f"{row.sparsity:.2%}",
            f"{row.accuracy:.2%}",
            f"{row.spectral:.3f}",
            f"{row.frobenius:.3f}",
            f"{row.singular_values:.3f}",
            f"{row.milliseconds:.1f}",
            style="bold" if row.accuracy == best[row.requested] else "",
        )
    return shown
