"""Rotations of transformers, which spread outliers over all channels and change no result."""

__all__: list[str] = []
