"""Does width change how soon spectra settle and how far one can prune?

Multilayer perceptrons of two hidden layers, with and without batch normalisation.
"""

from functools import partial

from bench.paper.reporting.output import Result
from bench.paper.runs.jobs import Settings
from bench.paper.tasks.sweeps import sweep
from bench.paper.training.loop import Recipe
from bench.paper.training.networks import mlp

WIDTHS = (25, 50, 100, 200, 400)
RECIPE = Recipe(epochs=6, rate=1e-3, decay=0.05)


def run(settings: Settings) -> Result:
    """Every width with and without normalisation."""
    settings.require_own_networks("width")
    variants = [
        sweep.Variant(
            f"{'normalised' if norm else 'plain'}, width {width}", RECIPE,
            partial(mlp, 2, width, norm),
        )
        for norm in (False, True)
        for width in WIDTHS
    ]  # fmt: skip
    return sweep.run("width", settings, variants, "multilayer perceptrons of depth 2")
