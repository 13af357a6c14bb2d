"""Fake quantization: the definition, and the forms that compute it fast."""

__all__: list[str] = []
