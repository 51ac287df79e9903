"""Do the optimiser and its learning rate's schedule change how soon spectra settle?

A rate that falls to zero stills any spectrum; a constant one shows what settles of itself.
"""

from bench.paper.reporting.output import Result
from bench.paper.runs.jobs import Settings
from bench.paper.tasks.sweeps import sweep
from bench.paper.training.loop import Recipe

#: Optimiser, learning rate, weight decay.
OPTIMISERS = (
    ("sgd", 0.1, 1e-4), ("momentum", 0.03, 1e-4), ("adam", 1e-3, 0.0), ("adamw", 1e-3, 0.1),
)  # fmt: skip
SCHEDULES = ("constant", "step", "cosine")
EPOCHS = 10


def run(settings: Settings) -> Result:
    """Every optimiser under every schedule, on the settings' own network."""
    variants = [
        sweep.Variant(
            f"{name}, {schedule}",
            Recipe(EPOCHS, rate, decay, optimizer=name, schedule=schedule),
        )
        for name, rate, decay in OPTIMISERS
        for schedule in SCHEDULES
    ]
    return sweep.run("optimizer", settings, variants)
