"""The checks of the conformance kit, by subject."""

__all__: list[str] = []
