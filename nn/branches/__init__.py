"""What is added to the result of a quantized layer."""

__all__: list[str] = []
