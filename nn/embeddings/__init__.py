"""Quantized tables: embeddings and bags of them."""

__all__: list[str] = []
