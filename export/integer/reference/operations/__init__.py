"""What operators of torch do with integers: one module for each kind, one rule for each operator."""

__all__: list[str] = []
