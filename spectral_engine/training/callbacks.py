"""A Pruner, a SpectrumTracker and masks inside Lightning and the Hugging Face Trainer.

Thin: both prune when a step begins and record when it has ended, steps of the optimizer, not
batches. Both keep the states of pruner and tracker with their checkpoints, and go on from them:
Lightning in the checkpoint itself, the Trainer in a file of its checkpoint's folder. Without such a
state a training that goes on is counted from the checkpoint's step; a second one, from where the
first one ended.

Both trainers load a checkpoint inside their own call, after the model was given to them and before
the first step: a pruned checkpoint's zeros would be trained away with no moment to call
`mask_zeros`. The callbacks are that moment.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral_engine._util.checks import boolean
from spectral_engine._util.optional import optional
from spectral_engine.checkpoints.atomic import replacing_file
from spectral_engine.layers.find import Layer, find_layers
from spectral_engine.layers.ready import require_ready
from spectral_engine.layers.selector import Selector
from spectral_engine.masking.mask import mask_of
from spectral_engine.masking.model import keep_zeros
from spectral_engine.spectral.tracker import SpectrumTracker
from spectral_engine.training.pruner import Pruner

#: A loaded weight counts as pruned if at least this share of it is zero. Of a weight that was
#: trained dense hardly any entry is exactly zero, but a few rows may never have been reached.
PRUNED = 0.05
#: What the Trainer's callback writes into a checkpoint's folder.
STATE_FILE = "spectral_engine.pt"


class _Course:
    """What both callbacks do: a pruner and a tracker kept in step with a trainer's own count."""

    def __init__(self, tracker: Any, pruner: Any, masks: bool) -> None:
        if tracker is not None and not isinstance(tracker, SpectrumTracker):
            raise TypeError(f"tracker: expected a SpectrumTracker; got {type(tracker).__name__}")
        if pruner is not None and not isinstance(pruner, Pruner):
            raise TypeError(f"pruner: expected a Pruner; got {type(pruner).__name__}")
        self.tracker, self.pruner, self.masks = tracker, pruner, boolean("masks", masks)
        self.before = 0  # steps of trainings before this one
        self.restored = False

    def start(self, step: int, model: nn.Module | None, resumed: bool) -> None:
        """Training begins at the trainer's `step`, its checkpoint loaded if there is one."""
        if self.masks and resumed and model is not None:
            keep_loaded_zeros(model)
        counts = [one.count for one in (self.tracker, self.pruner) if one is not None]
        restored, self.restored = self.restored, False
        if not restored:
            self.before = max(max(counts, default=0) - step, 0)
        if self.tracker is not None:
            self.tracker.count = step + self.before
            if not restored or len(self.tracker.steps) == 0:
                self.tracker.start()

    def begin(self, step: int) -> None:
        """A step of training is about to begin, of those of the trainer the one after `step`."""
        pruner = self.pruner
        while pruner is not None and not pruner.finished and pruner.count <= step + self.before:
            pruner.step()

    def end(self, step: int) -> None:
        """The trainer has done `step` steps."""
        while self.tracker is not None and self.tracker.count < step + self.before:
            self.tracker.step()

    def finish(self) -> None:
        if self.tracker is not None:
            self.tracker.finish()
        if self.pruner is not None and self.pruner.done:
            self.pruner.finish()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = {"before": self.before}
        if self.tracker is not None:
            found["tracker"] = self.tracker.state_dict()
        if self.pruner is not None:
            found["pruner"] = self.pruner.state_dict()
        return found

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, the model's weights loaded already. What it lacks begins anew."""
        if self.tracker is not None and "tracker" in state:
            self.tracker.load_state_dict(state["tracker"])
        if self.pruner is not None and "pruner" in state:
            self.pruner.load_state_dict(state["pruner"])
        self.before = int(state.get("before", 0))
        self.restored = True

    @property
    def names(self) -> str:
        """What tells this callback from another one of the same training."""
        names = [] if self.tracker is None else self.tracker.names
        return ", ".join([*names, *([] if self.pruner is None else ["pruner"])])


def lightning_callback(
    tracker: SpectrumTracker | None = None,
    pruner: Pruner | None = None,
    *,
    masks: bool = True,
) -> Any:
    """A Lightning callback that prunes, records spectra and keeps zeros.

    Its state is part of Lightning's checkpoints: `fit(ckpt_path=...)` goes on where they ended.

    Args:
        tracker: records at each optimizer step; None records nothing.
        pruner: prunes as its schedule says, before the optimizer steps that it counts; None does
            not prune.
        masks: whether a `fit` that goes on from a checkpoint keeps the zeros of the pruned weights
            that it has loaded.

    Returns:
        The callback, of Lightning's own class.

    Raises:
        ModuleNotFoundError: neither `lightning` nor `pytorch_lightning` is installed.
        TypeError: names the argument, what was expected and what came.

    Example:
        >>> import importlib.util
        >>> module = torch.nn.Linear(8, 4)  # a LightningModule of yours
        >>> pruner = se.Pruner(module, se.OneShot(0.5, start=10))
        >>> if importlib.util.find_spec("lightning"):
        ...     import lightning
        ...     callbacks = [se.lightning_callback(pruner=pruner)]
        ...     trainer = lightning.Trainer(callbacks=callbacks, logger=False, max_epochs=1)
    """
    course = _Course(tracker, pruner, masks)
    base = optional("lightning_callback", "lightning.pytorch", "pytorch_lightning").Callback

    class SpectralCallback(base):  # type: ignore[misc, valid-type]
        @property
        def state_key(self) -> str:
            return f"SpectralCallback[{course.names}]"

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            resumed = getattr(trainer, "ckpt_path", None) is not None
            course.start(trainer.global_step, pl_module, resumed)

        def on_train_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
            course.begin(trainer.global_step)

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            # Of several batches that one optimizer step is made of, the last one counts.
            course.end(trainer.global_step)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            course.finish()

        def state_dict(self) -> dict[str, Any]:
            return course.state()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            course.restore(state_dict)

    return SpectralCallback()


def trainer_callback(
    tracker: SpectrumTracker | None = None,
    pruner: Pruner | None = None,
    *,
    masks: bool = True,
) -> Any:
    """A callback of the Hugging Face Trainer that prunes, records spectra and keeps zeros.

    With each checkpoint it writes its state into that folder, as `spectral_engine.pt`;
    `train(resume_from_checkpoint=...)` goes on from there, where the checkpoint lies in the
    Trainer's own `output_dir`.

    Args:
        tracker: records at each optimizer step; None records nothing.
        pruner: prunes as its schedule says, before the optimizer steps that it counts; None does
            not prune.
        masks: whether a training that goes on from a checkpoint keeps the zeros of the pruned
            weights that it has loaded.

    Returns:
        The callback, of the Trainer's own class.

    Raises:
        ModuleNotFoundError: `transformers` is not installed.
        TypeError: names the argument, what was expected and what came.

    Example:
        >>> import importlib.util
        >>> model = torch.nn.Linear(8, 4)  # a model of yours
        >>> tracker = se.SpectrumTracker(model, every=100)
        >>> if importlib.util.find_spec("transformers"):
        ...     callbacks = [se.trainer_callback(tracker)]  # Trainer(model, callbacks=callbacks)
    """
    course = _Course(tracker, pruner, masks)
    base = optional("trainer_callback", "transformers").TrainerCallback

    class SpectralCallback(base):  # type: ignore[misc, valid-type]
        def on_train_begin(
            self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
        ) -> None:
            resumed = state.global_step > 0
            saved = _state_file(args, state) if resumed else None
            if saved is not None and saved.is_file():
                course.restore(torch.load(saved, map_location="cpu", weights_only=True))
            course.start(state.global_step, model, resumed)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            course.begin(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            course.end(state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            path = _state_file(args, state)
            if getattr(state, "is_world_process_zero", True) and path is not None:
                with replacing_file(path, force=True) as file:
                    torch.save(course.state(), file)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            course.finish()

    return SpectralCallback()


def _state_file(args: Any, state: Any) -> Path | None:
    """Where the state of a Trainer's checkpoint is, if its folder is there."""
    folder = Path(getattr(args, "output_dir", None) or ".") / f"checkpoint-{state.global_step}"
    return folder / STATE_FILE if folder.is_dir() else None


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
