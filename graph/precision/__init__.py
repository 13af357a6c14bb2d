"""How much each layer suffers from fewer bits, and how to spend a budget of bits."""

__all__: list[str] = []
