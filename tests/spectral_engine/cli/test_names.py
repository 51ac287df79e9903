"""The names that the command line has written down are those of the engine."""

from pathlib import Path

import spectral_engine as se
from spectral_engine.cli import names
from spectral_engine.demo.data import DEFAULT_FOLDER
from spectral_engine.profiling import records, shapes
from spectral_engine.recipe import methods


def test_names_are_those_of_the_engine():
    """Catches a preset, model, method or dtype that help and completion do not know."""
    assert tuple(se.PRESETS) == names.PRESETS
    assert tuple(methods.METHODS) == names.METHODS
    assert tuple(shapes.MODELS) == names.MODELS
    assert records.DTYPES == names.DTYPES
    assert Path(names.FASHION_MNIST) == DEFAULT_FOLDER
