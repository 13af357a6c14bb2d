"""What may be injected into a quantizer: the contracts that shipped parts and a user's own meet alike."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from .declare.inject import choices_of
from .errors import SettingError
from .formats.int_range import IntRange
from .formats.number_format import NumberFormat
from .grid import Grid

__all__ = ["Levels", "Restriction", "Rounding", "Scaling", "Statistic", "Transform", "ZeroPoint", "checked"]


Levels = NumberFormat | IntRange  # what the parts of a quantizer are given for its ``number_format``


@runtime_checkable
class Scaling(Protocol):
    """``x -> scale``: positive, 0-d or broadcastable to ``x``, which is float32 or float64 and never empty.

    With an attribute ``dynamic = False`` it says that every input gets the same scale, so that tensors may share it.
    """

    def __call__(self, x: Tensor, /) -> Tensor:
        """The scale for a tensor."""
        ...


@runtime_checkable
class Rounding(Protocol):
    """``x -> whole numbers`` for ``x / scale``; gradients pass straight through unless ``straight_through = False``."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Whole numbers next to those of a tensor."""
        ...


@runtime_checkable
class ZeroPoint(Protocol):
    """``(x, scale) -> whole numbers`` in the range of the integers, shaped like the scale."""

    def __call__(self, x: Tensor, scale: Tensor, /) -> Tensor:
        """The integer that stands for 0."""
        ...


@runtime_checkable
class Statistic(Protocol):
    """``rows -> Tensor``: one number for each row of values that share a scale, see `Granularity`.

    ``rows`` is 2-d, float32 or float64 and never empty. With a method ``low(rows)`` it serves zero points, with
    ``pooled(rows)`` it tells what several processes that train together have measured.
    """

    def __call__(self, rows: Tensor, /) -> Tensor:
        """The statistic of each row."""
        ...


@runtime_checkable
class Restriction(Protocol):
    """Which scales are allowed, and in which domain a learned one is stored. See `FloatScale`."""

    def scale(self, magnitude: Tensor, number_format: Levels) -> Tensor:
        """The allowed scale with which the levels reach a positive magnitude."""
        ...

    def store(self, magnitude: Tensor) -> Tensor:
        """The number that a parameter holds for a magnitude."""
        ...

    def load(self, stored: Tensor) -> Tensor:
        """The magnitude of a parameter."""
        ...

    def int_threshold(self, number_format: Levels) -> float | Tensor:
        """The integer, or the level, that the magnitude is mapped to."""
        ...


@runtime_checkable
class Transform(Protocol):
    """``(weight, inputs) -> weight``: what a weight becomes before it is measured, scaled and rounded.

    ``weight`` is float32 or float64, in the shape that the quantizer sees; ``inputs`` is the grid of what the layer
    multiplies it with, or None where the layer doesn't know it. A module may have parameters and buffers. More that a
    transform may have:

    - ``scheme()`` returns what a saved file says of it, such as ``"tanh"``;
    - ``limit(weight, scale, inputs, bias)`` returns the weight once more, when the scale is known; ``bias`` is what
      the layer adds to the products on their scale, or None;
    - ``reset_parameters()`` sets state that starts from the weight to what it is before there is one;
    - ``rounds`` is true where it rounds to levels itself: during a delay (``after``) the weight then passes without it.
    """

    def __call__(self, weight: Tensor, inputs: Grid | None, /) -> Tensor:
        """The weight that is quantized."""
        ...


_ARGUMENTS = {"scaling": 1, "rounding": 1, "zero_point": 2, "statistic": 1, "transform": 2}
_CALLS = {
    "scaling": "x",
    "rounding": "x",
    "zero_point": "x, scale",
    "statistic": "rows",
    "transform": "weight, inputs",
}


def checked(setting: str, found: object) -> Any:
    """What was injected as a setting, or a `SettingError` that says what may be.

    Example:
        >>> checked("rounding", 3)
        Traceback (most recent call last):
        bitwright.qcore.errors.SettingError: rounding=3 is not possible: expected one of 'half_even', 'half_up', \
'floor', 'ceil', 'toward_zero', 'stochastic', 'learned', or a class or function of your own that is called with (x).
    """
    if type(found) in choices_of(setting).values():
        return found
    if setting == "restriction":
        fits, call = isinstance(found, Restriction), "a subclass of FloatScale"
    else:
        fits = callable(found) and not inspect.isclass(found) and _takes(found, _ARGUMENTS[setting])
        call = f"a class or function of your own that is called with ({_CALLS[setting]})"
    if fits:
        return found
    names = ", ".join(map(repr, choices_of(setting)))
    none = ", None" if setting in ("zero_point", "transform") else ""
    raise SettingError(setting, found, f"one of {names}{none}, or {call}")


def _takes(call: Callable[..., object], count: int) -> bool:
    """Can something be called with so many arguments by position?"""
    function = getattr(call, "forward", call)
    if type(function).__module__ == "builtins" and not inspect.isroutine(function):
        return False
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a builtin that tells no signature
        return True
    return True
