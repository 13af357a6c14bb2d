"""What passes over whole models raise and warn of."""

import math

from ..qcore.errors import BitwrightError, BitwrightWarning

__all__ = ["GraphError", "GraphWarning", "check_count", "check_number"]


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


def check_count(algorithm: str, setting: str, found: object, least: int = 0) -> None:
    """Raise a `GraphError` where a setting is no whole number from ``least`` on.

    Example:
        >>> check_count("adaround", "iterations", 150)
    """
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise GraphError(f"{algorithm}: {setting}={found!r} is not a whole number, {least} or more.")


def check_number(
    algorithm: str, setting: str, found: object, low: float = 0.0, high: float = math.inf, usual: float = 1.0
) -> None:
    """Raise a `GraphError` where a setting is no number from ``low`` to ``high``.

    Example:
        >>> check_number("adaround", "warm_up", 0.2, high=1.0, usual=0.2)
    """
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not low <= found <= high:
        limits = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise GraphError(f"{algorithm}: {setting}={found!r} is not a number, {limits}; {usual:g} is usual.")
