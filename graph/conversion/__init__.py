"""quantize: a quantized model out of a float one and rules."""

__all__: list[str] = []
