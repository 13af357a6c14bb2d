"""A model as an ONNX graph with a placeholder for each call of a quantizer."""

__all__: list[str] = []
