"""Which numbers a grid has: integer ranges, bit widths."""

__all__: list[str] = []
