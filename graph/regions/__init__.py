"""Scales that a model's layers may exchange: who owns which tensor, and what is free."""

__all__: list[str] = []
