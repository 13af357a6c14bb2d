"""Where quantizers of activations stand, and which tensors share one."""

__all__: list[str] = []
