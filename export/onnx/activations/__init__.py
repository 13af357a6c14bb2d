"""Activations in a file: computed at run time in any number format, with scales that stay or follow the input."""

__all__: list[str] = []
