"""Batches through a model, and what is counted of its layers on the way."""

__all__: list[str] = []
