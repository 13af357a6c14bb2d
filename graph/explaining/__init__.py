"""What was quantized, by which rule, and how much it costs."""

__all__: list[str] = []
