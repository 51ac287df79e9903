"""The public names: documented in one form, with examples that run."""

import doctest
import importlib
import inspect

import numpy as np
import pytest
import torch

import spectral_engine

PACKAGES = ("spectral_engine", "spectral_kernels", "spectral_kernels.spectra")
#: What an example may use without importing it.
GLOBALS = {"np": np, "torch": torch, "se": spectral_engine}


def public() -> dict[str, object]:
    """Every public function and class, by its full name."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isfunction(thing) or inspect.isclass(thing):
                found[f"{package}.{name}"] = thing
    return found


@pytest.mark.parametrize("name", public())
def test_examples_run(name):
    """Catches an example that says something else than what happens, and a public name without
    one."""
    torch.manual_seed(0)
    thing = public()[name]
    module = inspect.getmodule(thing)
    names = {**vars(module), **GLOBALS}
    finder = doctest.DocTestFinder(recurse=inspect.isclass(thing))
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    for test in finder.find(thing, name, module, globs=names):
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    documented = isinstance(thing, type) or inspect.isfunction(thing)
    assert documented
    assert inspect.getdoc(thing)
    if inspect.isfunction(thing):
        assert runner.tries > 0, f"{name} has no example"


@pytest.mark.parametrize(
    "name", [name for name, thing in public().items() if inspect.isfunction(thing)]
)
def test_docstrings_have_one_form(name):
    """Catches arguments, a result or errors that a reader has to look for in the prose."""
    thing = public()[name]
    text = inspect.getdoc(thing) or ""
    signature = inspect.signature(thing)
    if signature.parameters:
        assert "Args:" in text
        arguments = text.partition("Args:")[2].partition("\n\n")[0]
        for parameter in signature.parameters:
            assert parameter in arguments, f"{name}: {parameter} is not in Args"
    if signature.return_annotation not in (None, "None", inspect.Signature.empty):
        assert "Returns:" in text
