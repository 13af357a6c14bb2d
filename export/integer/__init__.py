"""The integers of a model: layers, sums, files, a C header."""

__all__: list[str] = []
