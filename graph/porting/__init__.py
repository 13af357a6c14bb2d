"""Checkpoints of other libraries in models of this one."""

__all__: list[str] = []
