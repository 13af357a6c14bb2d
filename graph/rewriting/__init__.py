"""The forward of a module with calls of its own submodules in the places of recorded operations."""

__all__: list[str] = []
