"""Pictures of reports, by a package that comes as an extra."""

from typing import TYPE_CHECKING

from ..errors import BitwrightError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_class"]


def figure_class(asked: str, error: type[BitwrightError] = BitwrightError) -> "type[Figure]":
    """The class of pictures, which keeps none of them alive as pyplot does.

    Args:
        asked: the call that draws, for the message.
        error: what is raised.

    Raises:
        BitwrightError: matplotlib is not installed: one of the type given.

    Example:
        >>> figure_class("report.plot")(figsize=(2, 1)).get_size_inches().tolist()
        [2.0, 1.0]
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise error(f"{asked} needs the package matplotlib: pip install bitwright[plot]") from None
    return Figure
