"""Layer by layer: what a layer's inputs say of its weights, and algorithms that choose the weights by it."""

__all__: list[str] = []
