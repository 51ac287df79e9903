"""What the layers of a model see, gathered once, for any number of prunings of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from spectral_engine._util.progress import (
    Progress,
    check_progress,
    reporting,
    told_of_steps,
)
from spectral_engine.calibration.batches import Forward
from spectral_engine.calibration.calibrator import Calibrator
from spectral_engine.calibration.positions import PositionRule
from spectral_engine.calibration.request import (
    MAX_BYTES,
    MAX_SAMPLES,
    Calibrated,
    Calibration,
    Request,
)
from spectral_engine.calibration.stages import Stage, corrects_bias, refit_bytes
from spectral_engine.layers.find import Layer, layers_to_prune
from spectral_engine.layers.selector import Selector
from spectral_engine.matrix.moments import Moments
from spectral_engine.recipe.refits import workspace_of


class InputMoments:
    """The moments of each layer's inputs in the dense model; see `calibrate`.

    `prune` takes it for `calibration`, of the model or of a copy of it.

    Args:
        moments: by the layer's name, shared by layers that see the same inputs.
        unseen: the reason, by name, of layers that have none.
        few: by name, of layers that saw less than others, or less than they have input features:
            what they saw.

    Example:
        >>> import torch
        >>> import spectral_engine as se
        >>> layer = torch.nn.Linear(4, 2)
        >>> inputs = se.calibrate(torch.nn.Sequential(layer), [torch.ones(8, 4)])
        >>> inputs
        InputMoments(of 1 layers, 0 unseen)
        >>> inputs.moments["0.weight"].second.shape, inputs.moments["0.weight"].count
        (torch.Size([4, 4]), 8)
    """

    def __init__(
        self,
        moments: Mapping[str, Moments],
        unseen: Mapping[str, str],
        few: Mapping[str, str] | None = None,
    ) -> None:
        self.moments, self.unseen, self.few = dict(moments), dict(unseen), dict(few or {})

    def __repr__(self) -> str:
        """How many layers there are."""
        return f"InputMoments(of {len(self.moments)} layers, {len(self.unseen)} unseen)"

    def of(self, requests: Sequence[Request], max_bytes: int = MAX_BYTES) -> Iterator[Calibrated]:
        """The layers with their moments, and with the reason those that have none.

        Raises:
            ValueError: a layer that was not there, or had another number of inputs, when these
                were gathered; or more working memory than `max_bytes`.
        """
        for layer, refit, low_rank in requests:
            self._require(layer)
            needed = refit_bytes(Stage([layer], [], workspace=workspace_of(refit, low_rank)))
            if needed > max_bytes:
                raise ValueError(
                    f"max_bytes: the moments of {layer.name} and the working memory of its refit "
                    f"come to {needed:,} bytes; got {max_bytes:,}"
                )
        for layer, refit, _ in requests:
            moments = self.moments.get(layer.name)
            if moments is None:
                yield Calibrated(layer, None, self.unseen[layer.name])
            else:
                corrects = corrects_bias(layer, refit)
                centred = moments.deviations() if corrects else moments
                yield Calibrated(layer, centred, None, corrects, self.few.get(layer.name))

    def _require(self, layer: Layer) -> None:
        if layer.name not in self.moments and layer.name not in self.unseen:
            raise ValueError(
                f"calibration: expected inputs of {layer.name}; got those of other layers, of "
                f"which there are {len(self.moments) + len(self.unseen)}"
            )
        moments = self.moments.get(layer.name)
        shape = layer.matrix_shape
        expected = (*shape[:-2], shape[-1], shape[-1])
        if moments is not None and tuple(moments.second.shape) != expected:
            raise ValueError(
                f"calibration: expected moments of shape {expected} at {layer.name}; got "
                f"{tuple(moments.second.shape)}, of another model"
            )


def calibrate(
    model: nn.Module,
    batches: Any,
    *,
    targets: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    split: Mapping[str, Sequence[str] | Mapping[str, int]] | None = None,
    forward: Forward | None = None,
    positions: PositionRule = None,
    max_samples: int | None = MAX_SAMPLES,
    max_bytes: int = MAX_BYTES,
    progress: Progress[str] = True,
) -> InputMoments:
    """Gather what a model's layers see, in one pass over the batches.

    `prune(copy, recipe, calibration=calibrate(model, batches))` is
    `prune(copy, recipe, calibration=Calibration(batches, sequential=False))` without the pass, so
    that recipes can be compared at the price of one calibration.

    Args:
        model: left as it was, its buffers and the random state too.
        batches: see `Calibration`.
        targets, ignore: as for `prune`.
        split: as for `Select`.
        forward, positions, max_samples: see `Calibration`.
        max_bytes: the most that the moments may take: of n input features n x n float64 for each
            layer, layers of the same inputs once.
        progress: True for a bar on a terminal, False for none, or a function that is called with
            "batch 1", "batch 2", ... as each is done.

    Returns:
        The moments of each layer, and the reason why a layer has none.

    Raises:
        TypeError, ValueError: name the argument, what was expected and what came.

    Example:
        >>> import torch
        >>> import spectral_engine as se
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
        >>> inputs = se.calibrate(model, [torch.randn(16, 8) for _ in range(3)])
        >>> inputs.moments["1.weight"].count
        48
    """
    check_progress(progress)
    layers = layers_to_prune(model, Selector.of(targets, ignore), split)[0]
    calibration = Calibration(
        batches, forward=forward, positions=positions, max_samples=max_samples, sequential=False,
        max_bytes=max_bytes,
    )  # fmt: skip
    moments, unseen, few = {}, {}, {}
    known = len(batches) if isinstance(batches, list | tuple) else None
    with reporting(progress, "calibrating", known) as report, told_of_steps(_once(report)):
        for one in Calibrator(model, [Request(layer, None) for layer in layers], calibration):
            if one.moments is None:
                unseen[one.layer.name] = one.reason or ""
            else:
                moments[one.layer.name] = one.moments
            if one.few is not None:
                few[one.layer.name] = one.few
    return InputMoments(moments, unseen, few)


def _once(report: Callable[[str], None]) -> Callable[[str], None]:
    """Pass each batch on once: the first ones are looked at before all are gone through."""
    seen = set[str]()

    def tell(batch: str) -> None:
        if batch not in seen:
            seen.add(batch)
            report(batch)

    return tell
