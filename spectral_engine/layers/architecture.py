"""The model that a Hugging Face folder is of, without its weights: what kind each layer is.

transformers builds it on the meta device from config.json; no code that comes with a folder is run,
and nothing is fetched.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spectral_engine.checkpoints.config import ModelConfig

#: What building a model of a strange configuration may raise.
_ERRORS = (
    AttributeError, ImportError, KeyError, NotImplementedError, OSError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip


def model_of_folder(
    path: Path, config: ModelConfig, *, runs_in: torch.dtype | None = None
) -> tuple[nn.Module | None, str]:
    """The model that config.json describes, on the meta device, and what is to be said of it.

    Args:
        path: a checkpoint folder, or a file. config: what `model_config` says of it.
        runs_in: for a model that will run, once its parameters are loaded: their dtype. Its buffers
            hold what the model computes them to be.

    Returns:
        The model and its class's name; or None, and why it is not known.
    """
    if config.unknown is not None:
        return None, config.unknown
    name = config.architectures[0]
    if config.own_code:
        return None, f"the code of {name} comes with the folder, and is not run"
    try:
        transformers: Any = importlib.import_module("transformers")
    except ModuleNotFoundError:
        return None, f"transformers, which knows {name}, is not installed"
    kind = getattr(transformers, name, None)
    if kind is None:
        return None, f"transformers {transformers.__version__} does not know {name}"
    try:
        settings = transformers.AutoConfig.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
        if runs_in is None:
            with torch.device("meta"):
                model = kind(settings)
        else:
            with parameters_on_meta():
                model = kind._from_config(settings, dtype=runs_in)
    except _ERRORS as error:
        return None, f"transformers could not build {name}: {error}"
    return (model, name) if isinstance(model, nn.Module) else (None, f"{name} is no model")


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are made meanwhile have their parameters on the meta device, buffers as usual.

    Each goes there when its module takes it, before it is initialised, so that its memory is never
    touched.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None and not param.is_meta:
            empty = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            module._parameters[name] = empty

    kind: Any = nn.Module
    kind.register_parameter = on_meta
    try:
        yield
    finally:
        kind.register_parameter = register
