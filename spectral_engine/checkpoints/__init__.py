"""Weight files: read one tensor at a time, and rewritten whole or not at all."""

from .config import ModelConfig, files_of_tensors, model_config
from .formats.base import Checkpoint, CheckpointError
from .quantised import companions_of, quantised_companions
from .rewrite import Transform, open_checkpoint, rewrite

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ModelConfig",
    "Transform",
    "companions_of",
    "files_of_tensors",
    "model_config",
    "open_checkpoint",
    "quantised_companions",
    "rewrite",
]
