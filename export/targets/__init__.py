"""Targets: what each way out of the library can hold, and what of a model it can't."""

__all__: list[str] = []
