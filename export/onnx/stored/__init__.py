"""Tensors that a file stores: how they are held, written, and read back."""

__all__: list[str] = []
