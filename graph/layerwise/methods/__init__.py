"""Methods that change more of a layer than its codes: scales of channels, and branches beside the weight."""

__all__: list[str] = []
