"""What is asked of a calibration: how it is run, and for which layers; and what it gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from spectral_engine._util.checks import boolean, integer
from spectral_engine.calibration.batches import Forward, check_batches
from spectral_engine.calibration.positions import PositionRule
from spectral_engine.layers.find import Layer
from spectral_engine.matrix.moments import Moments
from spectral_engine.recipe.low_rank import LowRank
from spectral_engine.recipe.refits import Refit

#: Bytes of moments, and of the working memory of a refit beside them, unless the caller says.
MAX_BYTES = 1 << 32
#: Samples of a layer, unless the caller says: ten a feature for 6,500 features. From 2^13 on no
#: convolutional or recurrent network and no transformer gained by more (docs/design.md).
MAX_SAMPLES = 1 << 16
#: Why a layer has no moments though its inputs could be seen.
UNREACHED = "no batch reached it"


@dataclass(frozen=True, eq=False)
class Calibration:
    """Batches of a model's inputs, and how its layers' inputs are gathered from them.

    The model runs in evaluation mode over copies of the batches, and is left as it was.

    Args:
        batches: a list or tuple, gone through once a pass; or another iterable, such as a
            DataLoader, gone through once, whose batches are held in memory meanwhile. A batch is a
            tensor, given to the model as it is; a dictionary, given by keywords; or a tuple or
            list, of which the leading items that the model's forward has places for are given, so
            that labels are left out; see `calibration/batches.py`. One tensor or dictionary stands
            for a list of it.
        forward: called as forward(model, batch) instead of the model, for other batches.
        positions: which positions of a batch (B, T) are samples. None for those that the model's
            attention mask or key padding mask does not hide, as far as a layer's inputs have the
            batch's shape; "all"; or a function of a batch that gives True and False, or weights of
            at least 0, in a tensor (B, T).
        max_samples: about how many samples a layer is calibrated on, at most; of more, such as the
            windows of a convolution, so many are drawn, the same in every run. None takes all.
        sequential: True takes a layer's inputs from the model with the layers before it pruned, one
            pass a layer, in three times the memory of the largest layer's moments (SparseGPT and
            ALPS take more); False from the dense model, in one pass, which holds the sums of all
            layers at once, each twice its moments. None takes as few passes as `max_bytes` allows,
            each seen through the layers that earlier passes pruned: one, as False, where all fits.
        asymmetric: fit what the layer gives in the dense model, of which a copy is held meanwhile
            (GPTAQ, arXiv 2504.02692); only where the calibration is sequential.
        max_bytes: the most that moments and the working memory of the refit may take, the pruned
            weight included.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Example:
        >>> import spectral_engine as se
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> batches = [torch.randn(16, 8) for _ in range(3)]
        >>> calibration = se.Calibration(batches, sequential=True)
        >>> report = se.prune(model, "wanda", 0.5, calibration=calibration)
        >>> report.calibration.passes, [layer.samples for layer in report.layers]
        (2, [48, 48])
    """

    batches: Any
    forward: Forward | None = field(default=None, kw_only=True)
    positions: PositionRule = field(default=None, kw_only=True)
    max_samples: int | None = field(default=MAX_SAMPLES, kw_only=True)
    sequential: bool | None = field(default=None, kw_only=True)
    asymmetric: bool = field(default=False, kw_only=True)
    max_bytes: int = field(default=MAX_BYTES, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.batches, torch.Tensor | Mapping):
            object.__setattr__(self, "batches", [self.batches])
        if self.forward is not None and not callable(self.forward):
            raise TypeError(
                f"forward: expected a function of model and batch; got {self.forward!r}"
            )
        check_batches(self.batches, self.forward is not None)
        every = isinstance(self.positions, str) and self.positions == "all"
        if not (self.positions is None or every or callable(self.positions)):
            raise TypeError(
                f'positions: expected None, "all" or a function of a batch; got {self.positions!r}'
            )
        if self.max_samples is not None:
            integer("max_samples", self.max_samples, least=1)
        if self.sequential is not None:
            boolean("sequential", self.sequential)
        boolean("asymmetric", self.asymmetric)
        integer("max_bytes", self.max_bytes, least=1)
        if self.asymmetric and self.sequential is False:
            raise ValueError(
                "asymmetric: only a sequential calibration differs from the dense model"
            )


class Request(NamedTuple):
    """A layer whose moments are wanted, and the refit, and the factors, that they are for."""

    layer: Layer
    refit: Refit | None
    low_rank: LowRank | None = None


class Part(Protocol):
    """A part of a model that runs alone: its weights are loaded, and those of the rest may not be.

    What is outside of it gives what it gave before, which depends on the batch.
    """

    @property
    def modules(self) -> Sequence[nn.Module]:
        """The modules that run, without those inside them."""
        ...

    def see(self, index: int) -> None:
        """The next forward is over the batch of this number."""
        ...


@dataclass(frozen=True)
class Calibrated:
    """A layer with its moments, or with the reason why it has none.

    bias_correction: whether the layer's bias will be corrected; the moments are centred then.
    few: what the layer saw, where not every batch reached it or there are fewer samples than input
        features.
    """

    layer: Layer
    moments: Moments | None
    reason: str | None = None
    bias_correction: bool = False
    few: str | None = None
