"""Walking through a model, weight by weight, and gathering what its inputs say."""

__all__: list[str] = []
