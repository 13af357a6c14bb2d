"""Files of our own: a state dict whose weights are packed codes."""

__all__: list[str] = []
