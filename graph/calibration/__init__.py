"""Measuring the ranges of activations."""

__all__: list[str] = []
