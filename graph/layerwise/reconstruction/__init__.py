"""Reconstruction: the rounding of all weights of a block, learned at once on the block's output."""

__all__: list[str] = []
