"""ONNX files in the QCDQ and QDQ dialects: written, protected from the runtime's optimizations, verified."""

__all__: list[str] = []
