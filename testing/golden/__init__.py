"""Golden vectors from an independent oracle."""

__all__: list[str] = []
