"""Does what holds of feed-forward networks hold of recurrent ones? An LSTM and a GRU."""

from dataclasses import replace

from bench.paper.reporting.output import Result
from bench.paper.runs.jobs import Settings
from bench.paper.tasks.sweeps import sweep

NETWORKS = ("lstm", "gru")


def run(settings: Settings) -> Result:
    """The network of the settings, which is one of the two."""
    if settings.network not in NETWORKS:
        settings = replace(settings, network=NETWORKS[0])
    return sweep.run("recurrent", settings, [sweep.Variant(settings.network, settings.recipe)])
