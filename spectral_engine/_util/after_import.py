"""What is to be done once a module of another package is imported, which this does not import."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_ACTIONS: dict[str, Callable[[], None]] = {}


class _Loader(importlib.abc.Loader):
    """Loads a module as it would have been loaded, and then acts."""

    def __init__(self, loader: Any, action: Callable[[], None]) -> None:
        self._loader, self._action = loader, action

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._action()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the awaited modules by the other finders, and puts `_Loader` around their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _ACTIONS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _ACTIONS[fullname])
        return spec


def after_import(name: str, action: Callable[[], None]) -> None:
    """Act once a module is imported: at once if it is, else at the end of its import.

    Args:
        name: the module's full name. Each has one action, the last that was given.
        action: what it raises, the import raises.
    """
    if name in sys.modules:
        action()
        return
    _ACTIONS[name] = action
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
