"""The files beside the weights of a Hugging Face folder that name what is stored: index and config.

The index maps stored names to shards. config.json says under `quantization_config` that the weights
are compressed, by which transformers finds the loader that `spectral_engine` registers.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

#: What config.json calls the way in which weights are stored. Where transformers does not know it,
#: it prints it, and goes on with weights that it makes up: so it says what to do.
QUANT_METHOD = "spectral_engine (import it before from_pretrained)"
CONFIG = "config.json"
_KEY = "quantization_config"
#: Of what config.json says.
VERSION = 1


def index_text(index: Mapping[str, Any], stored: Mapping[str, Iterable[str]], size: int) -> bytes:
    """The index of other shards.

    Args:
        index: as it was; its metadata are kept, their total size is not.
        stored: shard to the names that it holds.
        size: the bytes of all tensors.
    """
    metadata = index.get("metadata")
    metadata = {**metadata} if isinstance(metadata, dict) else {}
    metadata["total_size"] = size
    weight_map = {name: file for file, names in stored.items() for name in names}
    made = {**index, "metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(made, indent=2) + "\n").encode()


def compressed_config(text: bytes) -> bytes:
    """config.json of a folder whose weights are compressed.

    Raises:
        TypeError, ValueError: no JSON object, or weights that are quantised in another way already.
    """
    config = _parsed(text)
    other = config.get(_KEY)
    if isinstance(other, dict) and other.get("quant_method") != QUANT_METHOD:
        raise ValueError(
            f"{CONFIG}: expected weights that are not quantised; got {other.get('quant_method')!r}"
        )
    config[_KEY] = {"quant_method": QUANT_METHOD, "version": VERSION}
    return _text(config)


def dense_config(text: bytes) -> bytes | None:
    """config.json of the same folder with dense weights; None where it says nothing of ours."""
    try:
        config = _parsed(text)
    except (ValueError, TypeError):
        return None
    own = config.get(_KEY)
    if not isinstance(own, dict) or own.get("quant_method") != QUANT_METHOD:
        return None
    del config[_KEY]
    return _text(config)


def _parsed(text: bytes) -> dict[str, Any]:
    config = json.loads(text)
    if not isinstance(config, dict):
        raise TypeError(f"{CONFIG}: expected a JSON object; got {type(config).__name__}")
    return config


def _text(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()
