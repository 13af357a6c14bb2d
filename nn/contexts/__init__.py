"""What holds for the length of a `with` block."""

__all__: list[str] = []
