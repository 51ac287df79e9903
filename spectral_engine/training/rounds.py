"""What a pruning in training did to the spectra: before it, after it, and after the training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spectral_engine.pruning.report import plain

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """One pruning. Spectra are the leading singular values of each pruned weight, descending.

    step: when; requested, sparsity: asked for and reached, over all pruned weights
    before, after: spectra around the pruning; retrained: those before the next pruning, or at
    `finish`; empty until then, and all three where spectra are not recorded
    kept: the share of the spectrum before the first pruning that is there after this one, the
    mean of min(sigma_i / sigma_i(first), 1); recovered: the same after training
    """

    step: int
    requested: float
    sparsity: float
    before: dict[str, Values] = field(default_factory=dict)
    after: dict[str, Values] = field(default_factory=dict)
    retrained: dict[str, Values] = field(default_factory=dict)
    kept: dict[str, float] = field(default_factory=dict)
    recovered: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; numbers that are not finite become None."""
        spectra = {part: getattr(self, part) for part in ("before", "after", "retrained")}
        numbers = {"step": self.step, "requested": self.requested, "sparsity": self.sparsity}
        shares = {"kept": self.kept, "recovered": self.recovered}
        return {name: plain(value) for name, value in {**numbers, **spectra, **shares}.items()}


def parts_of_round(
    spectra: Mapping[str, Values], index: int
) -> tuple[dict[str, Values], dict[str, Values], dict[str, Values],
           dict[str, float], dict[str, float]]:  # fmt: skip
    """Round `index` of the records: before, after, retrained, kept, recovered."""
    before, after, retrained = (
        {name: values[2 * index + at] for name, values in spectra.items()
         if 2 * index + at < len(values)}
        for at in range(3)
    )  # fmt: skip
    kept, recovered = (
        {name: share_kept(found[name], spectra[name][0]) for name in found}
        for found in (after, retrained)
    )
    return before, after, retrained, kept, recovered


def share_kept(values: Values, first: Values) -> float:
    """Mean of min(sigma_i / sigma_i(first), 1) over the values that were not zero; 1 of none."""
    there = first > 0.0
    return float(np.minimum(values[there] / first[there], 1.0).mean()) if there.any() else 1.0
