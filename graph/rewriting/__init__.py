"""The forward of a module with calls of its own submodules in the places of recorded operations."""

from .interposing import interpose
from .reading import function_at

__all__ = ["function_at", "interpose"]
