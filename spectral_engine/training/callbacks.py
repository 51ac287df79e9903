"""A `SpectrumTracker` inside Lightning and the Hugging Face Trainer, if they are installed.

Thin: both call `tracker.step()` after each optimizer step, and Lightning keeps the records in its
checkpoints. The tracker itself records, saves and plots. A training that goes on from a checkpoint
is counted from the checkpoint's step; a second one, from where the first one ended.
"""

from typing import Any

from spectral_engine._util.optional import optional
from spectral_engine.spectral.tracker import SpectrumTracker


def lightning_callback(tracker: SpectrumTracker) -> Any:
    """A Lightning callback: Trainer(callbacks=[lightning_callback(tracker)]).

    Raises:
        ModuleNotFoundError: neither `lightning` nor `pytorch_lightning` is installed.
    """
    base = optional("lightning_callback", "lightning.pytorch", "pytorch_lightning").Callback

    class SpectrumCallback(base):  # type: ignore[misc, valid-type]
        earlier = 0  # steps of a training before this one

        @property
        def state_key(self) -> str:
            return f"SpectrumCallback[{', '.join(tracker.names)}]"

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.earlier = max(tracker.count - trainer.global_step, 0)
            tracker.count = trainer.global_step + self.earlier
            tracker.start()

        def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
            # Of several batches that one optimizer step is made of, the last one counts.
            while tracker.count < trainer.global_step + self.earlier:
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
            tracker.count = max(tracker.count, state.global_step)
            tracker.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tracker.step()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tracker.finish()

    return SpectrumCallback()
