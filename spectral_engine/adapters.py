"""A `SpectrumTracker` inside Lightning and the Hugging Face Trainer, if they are installed.

Thin: both call `tracker.step()` after each optimizer step, and Lightning keeps the records in its
checkpoints. The tracker itself records, saves and plots.
"""

from typing import Any

from spectral_engine.optional import optional
from spectral_engine.tracker import SpectrumTracker


def lightning_callback(tracker: SpectrumTracker) -> Any:
    """A Lightning callback: Trainer(callbacks=[lightning_callback(tracker)]).

    Raises:
        ModuleNotFoundError: neither `lightning` nor `pytorch_lightning` is installed.
    """
    base = optional("lightning_callback", "lightning.pytorch", "pytorch_lightning").Callback

    class SpectrumCallback(base):  # type: ignore[misc, valid-type]
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            tracker.start()

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            # Of several batches that one optimizer step is made of, the last one counts.
            while tracker.count < trainer.global_step:
                tracker.step()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            tracker.finish()

        def state_dict(self) -> dict[str, Any]:
            return tracker.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            tracker.load_state_dict(state_dict)

    return SpectrumCallback()


def trainer_callback(tracker: SpectrumTracker) -> Any:
    """A Hugging Face callback: Trainer(callbacks=[trainer_callback(tracker)]).

    Raises:
        ModuleNotFoundError: `transformers` is not installed.
    """
    base = optional("trainer_callback", "transformers").TrainerCallback

    class SpectrumCallback(base):  # type: ignore[misc, valid-type]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tracker.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tracker.step()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tracker.finish()

    return SpectrumCallback()
