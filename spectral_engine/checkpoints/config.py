"""What a Hugging Face folder says of its model: the architecture, and which file holds what.

config.json is read, never acted upon: no code of the folder is imported, no model is built.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from .folder import Folder
from .formats.base import MAX_JSON_BYTES, CheckpointError, open_weights, parse_json_object

CONFIG = "config.json"


@dataclass(frozen=True)
class ModelConfig:
    """What is known of a checkpoint's model.

    Attributes:
        architectures: the class names of config.json, such as ("LlamaForCausalLM",).
        model_type: transformers' name of the family, such as "llama".
        quantisation: the method that `quantization_config` names, or None.
        own_code: whether the model's classes come with the folder (`auto_map`), so that naming
            the architecture would mean running them.
        unknown: why no architecture is known, or None.
    """

    architectures: tuple[str, ...] = ()
    model_type: str | None = None
    quantisation: str | None = None
    own_code: bool = False
    unknown: str | None = None


def model_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read what config.json says of the model in a folder.

    Args:
        path: a checkpoint folder; a file knows no architecture.

    Returns:
        The architecture, or in `unknown` why there is none. A config.json that cannot be read is
        such a reason, not an error: the weights can be judged by their names and shapes.
    """
    folder = Path(path)
    if not folder.is_dir():
        return ModelConfig(unknown=f"{folder.name} is a file, which names no architecture")
    try:
        with open_weights(folder / CONFIG) as file:
            text = file.read(MAX_JSON_BYTES + 1)
        config = parse_json_object(text[:MAX_JSON_BYTES], folder / CONFIG, CONFIG)
    except FileNotFoundError:
        return ModelConfig(unknown=f"{folder.name} has no {CONFIG}")
    except (OSError, CheckpointError) as error:
        return ModelConfig(unknown=str(error))
    named = config.get("architectures")
    architectures = tuple(a for a in named if isinstance(a, str)) if isinstance(named, list) else ()
    family = config.get("model_type")
    quantisation = config.get("quantization_config")
    method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
    return ModelConfig(
        architectures=architectures,
        model_type=family if isinstance(family, str) else None,
        quantisation=None if quantisation is None else str(method or "not named"),
        own_code=bool(config.get("auto_map")),
        unknown=None if architectures else f"{CONFIG} names no architecture",
    )


def files_of_tensors(folder: Folder) -> dict[str, str]:
    """Say which file of an open folder holds each tensor, by the tensor's name."""
    return {
        name: folder.file_of(shard) for shard in folder.files for name in folder.stored_in(shard)
    }
