"""What passes over whole models raise and warn of."""

from ..qcore.errors import BitwrightError, BitwrightWarning

__all__ = ["GraphError", "GraphWarning"]


class GraphError(BitwrightError):
    """A pass over a whole model can't do what it was asked; the model is as it was.

    Example:
        >>> issubclass(GraphError, ValueError)
        True
    """


class GraphWarning(BitwrightWarning):
    """Something in a model that a pass left as it was, and a user would want to know.

    Example:
        >>> issubclass(GraphWarning, UserWarning)
        True
    """
