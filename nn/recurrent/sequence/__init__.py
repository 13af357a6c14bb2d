"""A whole sequence of recurrent steps as one autograd function."""

__all__: list[str] = []
