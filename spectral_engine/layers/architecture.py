"""The model that a Hugging Face folder is of, without its weights: what kind each layer is.

transformers builds it on the meta device from config.json; no code that comes with a folder is run,
and nothing is fetched.
"""

import importlib
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


def model_of_folder(path: Path, config: ModelConfig) -> tuple[nn.Module | None, str]:
    """The model that config.json describes, on the meta device, and what is to be said of it.

    Args:
        path: a checkpoint folder, or a file. config: what `model_config` says of it.

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
        with torch.device("meta"):
            model = kind(settings)
    except _ERRORS as error:
        return None, f"transformers could not build {name}: {error}"
    return (model, name) if isinstance(model, nn.Module) else (None, f"{name} is no model")
