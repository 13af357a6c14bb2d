"""ONNX files that compute in integers only."""

__all__: list[str] = []
