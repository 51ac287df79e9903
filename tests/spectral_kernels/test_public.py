"""What the package declares public is there, and its examples run."""

import doctest
import importlib
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest
import spectral_kernels
import spectral_kernels.spectra

PUBLIC = [
    (module, name)
    for module in (spectral_kernels, spectral_kernels.spectra)
    for name in module.__all__
]


def documented() -> Iterator[Any]:
    """Public functions and classes, without types that are mere names for others."""
    for module, name in PUBLIC:
        thing = getattr(module, name)
        if isinstance(thing, FunctionType | type):
            yield pytest.param(thing, id=name)


@pytest.mark.parametrize("module", [spectral_kernels, spectral_kernels.spectra])
def test_exports_exist_once(module: Any) -> None:
    """Catches a name that is declared public and is not there, or twice."""
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("thing", list(documented()))
def test_examples_of_public_names_run(thing: Any) -> None:
    """Catches an example that no longer says what happens, and a public function without one."""
    finder = doctest.DocTestFinder(recurse=False)
    tests = finder.find(thing, module=importlib.import_module(thing.__module__))
    examples = [example for test in tests for example in test.examples]
    if isinstance(thing, FunctionType):
        assert examples, thing.__name__
    runner = doctest.DocTestRunner()
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
