"""Checkpoints of other libraries in models of this one."""

from .brevitas import load_brevitas
from .problems import CheckpointError

__all__ = ["CheckpointError", "load_brevitas"]
