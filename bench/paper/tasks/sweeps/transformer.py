"""Does what holds of feed-forward networks hold of a transformer?"""

from dataclasses import replace

from bench.paper.reporting.output import Result
from bench.paper.runs.jobs import Settings
from bench.paper.tasks.sweeps import sweep


def run(settings: Settings) -> Result:
    """A small transformer over the rows of the image."""
    settings = replace(settings, network="transformer")
    return sweep.run("transformer", settings, [sweep.Variant("transformer", settings.recipe)])
