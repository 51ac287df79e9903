"""Does depth change how soon spectra settle and how far one can prune, and does normalisation?

Multilayer perceptrons of width 128: plain, with batch normalisation, and with shortcuts too.
"""

from functools import partial

from bench.paper.reporting.output import Result
from bench.paper.runs.jobs import Settings
from bench.paper.tasks.sweeps import sweep
from bench.paper.training.loop import Recipe
from bench.paper.training.networks import mlp

DEPTHS, WIDTH = (1, 2, 4, 8, 16), 128
KINDS = (("plain", False, False), ("normalised", True, False), ("residual", True, True))
RECIPE = Recipe(epochs=6, rate=1e-3, decay=0.05)


def run(settings: Settings) -> Result:
    """Every depth in every kind."""
    settings.require_own_networks("depth")
    variants = [
        sweep.Variant(f"{kind}, depth {depth}", RECIPE, partial(mlp, depth, WIDTH, norm, residual))
        for kind, norm, residual in KINDS
        for depth in DEPTHS
    ]
    return sweep.run("depth", settings, variants, f"multilayer perceptrons of width {WIDTH}")
