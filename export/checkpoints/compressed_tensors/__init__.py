"""Checkpoints in the format of the package compressed-tensors, which vLLM reads."""

__all__: list[str] = []
