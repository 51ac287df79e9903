"""The layers of a block that batches reach, with moments; the others wait until it has run."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from spectral_engine.calibration.calibrator import Calibrator
from spectral_engine.calibration.request import Calibrated
from spectral_engine.calibration.sums.stage_sums import Waiting


@dataclass
class Reaching(Calibrator):
    """A calibrator that gives only layers with moments.

    Those without are pruned by their weights alone, and in memory they come last: what a block
    gives to the next one is computed before.

    Attributes:
        left: the layers without moments, once all others have come.
    """

    left: list[Calibrated] = field(default_factory=list, init=False)

    def __iter__(self) -> Iterator[Calibrated]:
        """The layers with their moments, in order."""
        for one in super().__iter__():
            if one.moments is None:
                self.left.append(one)
            else:
                yield one

    def waiting(self) -> Iterator[list[Waiting]]:
        """As of a `Calibrator`, where processes share the batches out."""
        for layers in super().waiting():
            self.left += [one.unreached for one in layers if one.unreached is not None]
            yield [one for one in layers if one.unreached is None]
