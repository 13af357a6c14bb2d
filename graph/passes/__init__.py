"""Passes over whole models: folding, equalization, corrections."""

__all__: list[str] = []
