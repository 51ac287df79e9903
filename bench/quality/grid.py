"""The settings that are compared: every method with every refit, calibration and budget."""

import fnmatch
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import spectral_engine as se
from bench.recipes import BUDGETS, METHODS, REFITS

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
#: Patterns that are measured, and the sparsity that each has.
PATTERNS = {"2:4": 0.5}
BOTH = (False, True)
GROUPS: tuple[Literal["row"] | None, ...] = (None, "row")
_LABEL = re.compile(
    r"(?P<method>[\w-]+)(?P<group> by row)?(?P<calibrated> calibrated)?"
    r"(?: \+ (?P<refit>(?!bias\b)[\w-]+))?(?P<bias_correction> \+ bias)?"
    r"(?P<asymmetric> asymmetric)?(?: \((?P<budget>\w+)\))?(?: (?P<pattern>\d+:\d+))?"
)


@dataclass(frozen=True)
class Setting:
    """A recipe by the names of its parts, and how it is calibrated.

    group: "row" where every row has the same budget. budget: how the layers share it, None for the
    same share each. calibrated: whether the layers' inputs are gathered; asymmetric: as in
    `se.Calibration`.
    """

    method: str = "magnitude"
    group: Literal["row"] | None = None
    calibrated: bool = False
    refit: str | None = None
    bias_correction: bool = False
    asymmetric: bool = False
    budget: str | None = None
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
            f"({self.budget})" if self.budget else "",
            self.pattern or "",
        )
        return " ".join(part for part in parts if part)

    @classmethod
    def read(cls, label: str) -> "Setting":
        """The setting that has this label."""
        found = _LABEL.fullmatch(label)
        if found is None:
            raise ValueError(f"label: expected that of a setting; got {label!r}")
        told: dict[str, Any] = found.groupdict()
        told |= {name: bool(told[name]) for name in ("calibrated", "bias_correction", "asymmetric")}
        return cls(**{**told, "group": "row" if told["group"] else None})

    @property
    def recipe(self) -> se.Recipe:
        """As `se.prune` takes it, the sparsity apart."""
        budget: se.Budget = BUDGETS[self.budget or "uniform"](group=self.group or "tensor")
        if self.pattern:
            budget = se.Pattern(self.pattern)
        refit: se.Refit | None = se.BiasCorrection() if self.bias_correction else None
        if self.refit:
            refit = REFITS[self.refit](bias_correction=self.bias_correction)
        return se.Recipe(METHODS[self.method](), budget=budget, refit=refit)

    @property
    def varies(self) -> bool:
        """Whether a seed changes anything: the draws, or the batches that calibrate."""
        return self.calibrated or METHODS[self.method]().draws

    def fits(self, sparsity: float) -> bool:
        """Whether the pattern, if there is one, has this sparsity."""
        return self.pattern is None or sparsity == PATTERNS[self.pattern]


BASELINE = Setting()


def settings(patterns: Sequence[str] = ("*",)) -> Iterator[Setting]:
    """Every method, by tensor and by row, with every refit, calibration and budget.

    `patterns` are globs over labels, such as "magnitude*"; "!*by row*" leaves out. The baseline is
    always there and comes first. Then come those that a time limit should cut off last: a uniform
    budget, magnitude.
    """
    yield BASELINE
    for budget, pattern, method, calibrated, refit, group, bias, dense in itertools.product(
        BUDGETS, (None, *PATTERNS), METHODS, BOTH, (None, *REFITS), GROUPS, BOTH, BOTH
    ):
        shared = None if budget == "uniform" else budget
        setting = Setting(method, group, calibrated, refit, bias, dense, shared, pattern)
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
    """Whether `prune` takes it, and it is not another setting under another name.

    Without inputs there is nothing to fit, and no bias to correct. With inputs, a refit that does
    not use them is left out; so is one that chooses its own mask where the method is not magnitude,
    since under another's mask it is least squares, or nearly. Only a fit can be asymmetric.
    """
    refit = REFITS.get(setting.refit or "")
    if setting.pattern and (setting.group or setting.budget):
        return False  # a pattern is a budget of its own
    if not setting.calibrated:
        data_free = not refit or not refit.needs_inputs
        return data_free and not setting.bias_correction and not setting.asymmetric
    if refit is None:
        return not setting.asymmetric
    return refit.needs_inputs and not (refit.chooses_mask and setting.method != "magnitude")
