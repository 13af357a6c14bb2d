"""Two sides of an export, compared tensor by tensor: what counts as a difference, and the report."""

__all__: list[str] = []
