"""What waits for the import of another package's module."""

import importlib
import inspect
import sys

import pytest

from spectral_engine._util.after_import import after_import


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with two modules, not yet imported."""
    folder = tmp_path / "awaited_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text("VALUE = 1\n\n\ndef f():\n    return VALUE\n")
    (folder / "two.py").write_text("from awaited_package import one\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "awaited_package"
    for name in [name for name in sys.modules if name.startswith("awaited_package")]:
        del sys.modules[name]


def test_acts_once_at_the_end_of_the_import(package):
    """Catches an action before the module is whole, one for another module, one for each import of
    it, and a module whose source is not found any more."""
    seen = []
    after_import(f"{package}.one", lambda: seen.append(sys.modules[f"{package}.one"].VALUE))
    importlib.import_module(package)
    assert seen == []
    importlib.import_module(f"{package}.two")
    one = importlib.import_module(f"{package}.one")
    assert (seen, one.f()) == ([1], 1)
    assert "return VALUE" in inspect.getsource(one)
    assert one.__spec__.loader.get_source(one.__name__).startswith("VALUE")


def test_acts_at_once_where_it_is_imported(package):
    """Catches an action that waits for an import which has been."""
    importlib.import_module(f"{package}.one")
    seen = []
    after_import(f"{package}.one", lambda: seen.append(1))
    assert seen == [1]


def test_a_module_that_is_not_there_is_missed_as_ever(package):
    """Catches an error of the finder's own in place of ModuleNotFoundError."""
    after_import(f"{package}.three", lambda: None)
    with pytest.raises(ModuleNotFoundError, match="three"):
        importlib.import_module(f"{package}.three")
