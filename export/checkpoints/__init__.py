"""Checkpoints in formats of others, and packed files of our own."""

__all__: list[str] = []
