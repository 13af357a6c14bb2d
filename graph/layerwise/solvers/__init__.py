"""Algorithms that choose the weights of one layer: functions of a `Problem`, without models and data."""

__all__: list[str] = []
