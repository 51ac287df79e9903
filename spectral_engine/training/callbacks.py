"""Spectra and masks inside Lightning and the Hugging Face Trainer, if they are installed.

Thin: both call `tracker.step()` after each optimizer step, and Lightning keeps the records in its
checkpoints. The tracker itself records, saves and plots. A training that goes on from a checkpoint
is counted from the checkpoint's step; a second one, from where the first one ended.

Both trainers load a checkpoint inside their own call, after the model was given to them and before
the first step: a pruned checkpoint's zeros would be trained away with no moment to call
`mask_zeros`. The callbacks are that moment.
"""

import warnings
from typing import Any

import torch
from torch import nn

from spectral_engine._util.checks import boolean
from spectral_engine._util.optional import optional
from spectral_engine.layers.find import Layer, find_layers
from spectral_engine.layers.ready import require_ready
from spectral_engine.layers.selector import Selector
from spectral_engine.masking.mask import mask_of
from spectral_engine.masking.model import keep_zeros
from spectral_engine.spectral.tracker import SpectrumTracker

#: A loaded weight counts as pruned if at least this share of it is zero. Of a weight that was
#: trained dense hardly any entry is exactly zero, but a few rows may never have been reached.
PRUNED = 0.05


def lightning_callback(tracker: SpectrumTracker | None = None, *, masks: bool = True) -> Any:
    """A Lightning callback: `Trainer(callbacks=[lightning_callback(tracker)])`.

    Args:
        tracker: records at each optimizer step; None records nothing.
        masks: whether a `fit` that goes on from a checkpoint (`ckpt_path`) keeps the zeros of the
            pruned weights that it has loaded; see `keep_loaded_zeros`.

    Returns:
        The callback, of Lightning's own class.

    Raises:
        ModuleNotFoundError: neither `lightning` nor `pytorch_lightning` is installed.
        TypeError: `masks` is no truth value.
    """
    boolean("masks", masks)
    base = optional("lightning_callback", "lightning.pytorch", "pytorch_lightning").Callback

    class SpectrumCallback(base):  # type: ignore[misc, valid-type]
        earlier = 0  # steps of a training before this one

        @property
        def state_key(self) -> str:
            return f"SpectrumCallback[{', '.join([] if tracker is None else tracker.names)}]"

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if masks and getattr(trainer, "ckpt_path", None) is not None:
                keep_loaded_zeros(pl_module)
            if tracker is not None:
                self.earlier = max(tracker.count - trainer.global_step, 0)
                tracker.count = trainer.global_step + self.earlier
                tracker.start()

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            # Of several batches that one optimizer step is made of, the last one counts.
            while tracker is not None and tracker.count < trainer.global_step + self.earlier:
                tracker.step()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if tracker is not None:
                tracker.finish()

        def state_dict(self) -> dict[str, Any]:
            return {} if tracker is None else tracker.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            if tracker is not None:
                tracker.load_state_dict(state_dict)

    return SpectrumCallback()


def trainer_callback(tracker: SpectrumTracker | None = None, *, masks: bool = True) -> Any:
    """A Hugging Face callback: `Trainer(callbacks=[trainer_callback(tracker)])`.

    Args:
        tracker: records at each optimizer step; None records nothing.
        masks: whether a training that goes on from a checkpoint (`resume_from_checkpoint`) keeps
            the zeros of the pruned weights that it has loaded; see `keep_loaded_zeros`.

    Returns:
        The callback, of the Trainer's own class.

    Raises:
        ModuleNotFoundError: `transformers` is not installed.
        TypeError: `masks` is no truth value.
    """
    boolean("masks", masks)
    base = optional("trainer_callback", "transformers").TrainerCallback

    class SpectrumCallback(base):  # type: ignore[misc, valid-type]
        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            if masks and model is not None and state.global_step > 0:
                keep_loaded_zeros(model)
            if tracker is not None:
                tracker.count = max(tracker.count, state.global_step)
                tracker.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if tracker is not None:
                tracker.step()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if tracker is not None:
                tracker.finish()

    return SpectrumCallback()


def keep_loaded_zeros(model: nn.Module) -> list[str]:
    """Mask the zeros of a model that has loaded a pruned checkpoint.

    Args:
        model: of its weights, those that have no mask yet, and of which `PRUNED` or more is zero
            but not all, are taken to be pruned. Embeddings count, adapters do not.

    Returns:
        The names of the weights that got a mask. Where a weight cannot be masked, as in a sharded
        model, there is a warning that names it, and none gets one.
    """
    try:
        found, _ = find_layers(model, Selector.of("*", None))
        layers = [layer for layer in found if _looks_pruned(layer)]
        require_ready(layers)
    except (TypeError, ValueError) as error:
        warnings.warn(
            f"the zeros of the checkpoint that was loaded are not kept: {error}", stacklevel=2
        )
        return []
    keep_zeros(layers)
    return [layer.name for layer in layers]


def _looks_pruned(layer: Layer) -> bool:
    weight = layer.parameter
    if weight.is_meta or not weight.is_floating_point() or mask_of(weight) is not None:
        return False
    entries = layer.entries(weight.detach())
    zeros = entries.numel() - int(torch.count_nonzero(entries))
    return PRUNED * entries.numel() <= zeros < entries.numel()
