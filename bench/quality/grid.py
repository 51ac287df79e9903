"""The settings that are compared: all that `se.prune` offers, read off its own tables."""

import fnmatch
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from spectral_engine.pruning.allocation import ALLOCATIONS
from spectral_engine.recipe.legacy import PRESETS, REFITS, resolve

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Setting:
    """Arguments of `se.prune`; None or False is its own default."""

    method: str = "magnitude"
    group: str | None = None
    calibrated: bool = False
    refit: str | None = None
    bias_correction: bool = False
    asymmetric: bool = False
    allocation: str | None = None
    pattern: str | None = None

    @property
    def label(self) -> str:
        """How tables and files call it."""
        parts = (
            self.method,
            "by row" if self.group == "row" else "",
            "calibrated" if self.calibrated else "",
            f"+ {self.refit}" if self.refit else "",
            "+ bias" if self.bias_correction else "",
            "asymmetric" if self.asymmetric else "",
            f"({self.allocation})" if self.allocation else "",
            self.pattern or "",
        )
        return " ".join(part for part in parts if part)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `prune`, the calibration batches apart."""
        given = {key: value for key, value in asdict(self).items() if value not in (None, False)}
        given.pop("calibrated", None)
        return given

    @property
    def varies(self) -> bool:
        """Whether a seed changes anything: the draws, or the batches that calibrate."""
        return self.calibrated or resolve(self.method).law != "threshold"

    @classmethod
    def read(cls, values: dict[str, Any]) -> "Setting":
        """From the plain values of a file."""
        return cls(**{field.name: values.get(field.name, field.default) for field in fields(cls)})

    def fits(self, sparsity: float) -> bool:
        """Whether the pattern, if there is one, has this sparsity."""
        return self.pattern is None or sparsity == PATTERNS[self.pattern]


BASELINE = Setting()
#: Patterns that are measured, and the sparsity that each has.
PATTERNS = {"2:4": 0.5}
BOTH = (False, True)


def settings(patterns: Sequence[str] = ("*",)) -> Iterator[Setting]:
    """Every method, by tensor and by row, with every refit, calibration and allocation.

    `patterns` are globs over labels, such as "magnitude*"; "!*by row*" leaves out. The baseline is
    always there and comes first; then what a time limit should cut off last: a uniform budget,
    magnitude.
    """
    yield BASELINE
    for allocation, pattern, method, calibrated, refit, group, bias, dense in itertools.product(
        ALLOCATIONS, (None, *PATTERNS), PRESETS, BOTH, (None, *REFITS), (None, "row"), BOTH, BOTH
    ):
        budget = None if allocation == "uniform" else allocation
        setting = Setting(method, group, calibrated, refit, bias, dense, budget, pattern)
        if _is_wanted(setting.label, patterns) and setting != BASELINE and _makes_sense(setting):
            yield setting


def _is_wanted(label: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns matches, if there is one to match, and none that leaves out."""
    out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    chosen = [pattern for pattern in patterns if not pattern.startswith("!")]
    return any(fnmatch.fnmatchcase(label, one) for one in chosen or ["*"]) and not any(
        fnmatch.fnmatchcase(label, one) for one in out
    )


def _makes_sense(setting: Setting) -> bool:
    """Leaves out what `prune` refuses, and what says the same as another setting.

    Without inputs there is nothing to fit, and no bias to correct; with them, a refit that makes no
    use of them is beside the point, and one that chooses its own mask under magnitude is least
    squares, or nearly, under the mask of another method. What is asymmetric is the fit.
    """
    refit = REFITS.get(setting.refit or "")
    if setting.pattern and (setting.group or setting.allocation):
        return False  # a pattern is a budget of its own
    if not setting.calibrated:
        data_free = not refit or not refit.needs_inputs
        return data_free and not setting.bias_correction and not setting.asymmetric
    if refit is None:
        return not setting.asymmetric
    return refit.needs_inputs and not (refit.own_mask and setting.method != "magnitude")
