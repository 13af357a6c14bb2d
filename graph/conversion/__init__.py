"""From a float model to a quantized one: rules, and layers that change their class."""

__all__: list[str] = []
