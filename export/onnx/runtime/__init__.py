"""onnxruntime's own kernels: files that use them, what that costs in exactness, and how accurate a file is."""

__all__: list[str] = []
