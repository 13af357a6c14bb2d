"""Which layers of a float model can be quantized, and how one changes its class."""

__all__: list[str] = []
