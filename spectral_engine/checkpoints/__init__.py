"""Weight files: read one tensor at a time, and rewritten whole or not at all."""

from .formats.base import Checkpoint, CheckpointError
from .rewrite import Transform, open_checkpoint, rewrite

__all__ = ["Checkpoint", "CheckpointError", "Transform", "open_checkpoint", "rewrite"]
