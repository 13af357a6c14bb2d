"""The declaration language: quantizers as classes, resolved by injection, described in words."""

__all__: list[str] = []
