"""Packages that one feature needs and the others do not."""

from importlib import import_module
from types import ModuleType


def optional(feature: str, *names: str) -> ModuleType:
    """The first of these modules that can be imported.

    Raises:
        ModuleNotFoundError: none is installed; says which package the feature needs.
    """
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name or name}."):
                raise  # it is there, and lacks something itself
    package = names[0].partition(".")[0]
    raise ModuleNotFoundError(f"{feature} needs {package}: pip install {package}", name=package)
