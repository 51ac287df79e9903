"""Spectrum-preserving sparsification of neural networks.

import spectral_engine as se

out = se.sparsify(weight, "randomized", 0.9)
report = se.prune(model, "magnitude", 0.9)
recipe = se.Recipe(se.Magnitude(), budget=se.ERK(0.9), refit=se.SpectralRefit())
err = se.errors(weight, out.weight)
spec = se.spectrum(weight, rank=64)
print(se.spectra(model))

The names are imported when the first of them is used, or with this package where torch already is:
`import spectral_engine` alone takes no time. They stand in __init__.pyi.
"""

import pkgutil
import sys
import threading
from typing import Any

import lazy_loader

from spectral_engine._util.after_import import after_import

__version__ = "0.1.0"
_import, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
_LOCK = threading.RLock()


def __getattr__(name: str) -> Any:
    if name in __all__ or _is_room(name):
        _load()
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_room(name: str) -> bool:
    """Whether it is a folder that the public names import; the command line is none."""
    return name != "cli" and any(name == room.name for room in pkgutil.iter_modules(__path__))


def _load() -> None:
    """Import every public name: one after another, since two threads that import modules of ours in
    different orders would wait for each other."""
    with _LOCK:
        for name in __all__:
            if name not in globals():
                _import(name)


def _register_with_transformers() -> None:
    _load()
    from spectral_engine.compression.hub import huggingface  # noqa: PLC0415 (imports transformers)

    huggingface.register()


after_import("transformers.quantizers.auto", _register_with_transformers)
after_import("torch._export.serde.serialize", _load)  # a stored program may call our operators
if "torch" in sys.modules:
    _load()
