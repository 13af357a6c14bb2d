"""What a model costs in bits."""

__all__: list[str] = []
