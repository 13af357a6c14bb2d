"""The base of the shipped scalings: a magnitude, in units of ``x``, becomes a scale."""

import math
from collections.abc import Callable
from operator import index
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..formats.number_format import NumberFormat
from ..granularity import Granularity, PerToken, granularity_of
from ..protocols import Levels, Restriction, checked
from ..rounding import Rounding
from .restriction import FloatScale

__all__ = ["WIDE", "MagnitudeScaling", "entries", "finite", "usable", "whole"]

WIDE = (torch.float32, torch.float64)


class MagnitudeScaling(nn.Module):
    """A scale from the magnitude that the largest integer stands for. Subclasses say where the magnitude comes from.

    Buffers are never less precise than float32: a scale is no activation.

    Args:
        number_format: the levels of the grid.
        restriction: which scales are allowed.
        min_scale: no scale is smaller.
        axis: the dimension with a scale for each index, or None for one scale.
        granularity: which values share a scale, where ``axis`` can't say it.

    Raises:
        SettingError: a minimum that is not above 0 and finite, or an axis that is no whole number.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> class Largest(MagnitudeScaling):
        ...     def __init__(self, number_format):
        ...         super().__init__(number_format, FloatScale(), min_scale=1e-10)
        ...
        ...     def forward(self, x):
        ...         return self.scale_of(x.abs().max(), x)
        >>> Largest(IntRange(8, signed=True, narrow_range=True))(torch.tensor([0.5, -1.27]))
        tensor(0.0100)
    """

    dynamic = True  # whether another input gets another scale in evaluation
    measuring = True  # whether the next forward measures its input
    number_format: Levels
    restriction: Restriction
    min_scale: float
    granularity: Granularity
    _known: Any = None  # see `_numbers`

    def __init__(
        self,
        number_format: Levels,
        restriction: Restriction,
        min_scale: float,
        axis: int | None = None,
        granularity: Granularity | None = None,
    ) -> None:
        super().__init__()
        if finite("min_scale", min_scale, "a number above 0") <= 0:
            raise SettingError("min_scale", min_scale, "a number above 0")
        self.number_format = number_format
        self.restriction = checked("restriction", restriction)
        self.min_scale = float(min_scale)
        self.granularity = granularity_of(axis, granularity)

    @property
    def int_range(self) -> Levels:
        """The levels of the grid, by the name that integers have for them."""
        return self.number_format

    @property
    def axis(self) -> int | None:
        """The dimension with a scale for each index, where that is the granularity."""
        return self.granularity.axis

    def scale_of(self, magnitude: Tensor, x: Tensor) -> Tensor:
        """The scale that maps a magnitude to the largest integer; never below the minimum, never half precision.

        Args:
            magnitude: one number, or one for each row of the granularity.
            x: the tensor that it is for: its shape says that of the scales.
        """
        return self.granularity.compact(self.scale_for(magnitude), x.shape)

    def scale_for(self, magnitude: Tensor) -> Tensor:
        """The same, one scale for each magnitude, in no tensor's shape."""
        magnitude = magnitude if magnitude.dtype in WIDE else magnitude.float()
        floor = self.min_scale * self.restriction.int_threshold(self.number_format)
        at_least = torch.where(magnitude < floor, floor, magnitude)
        return self.restriction.scale(at_least, self.number_format)

    def fused(
        self, x: Tensor, levels: NumberFormat, rounding: Rounding, relu: bool, clips: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Values and scale in one step where there is a fast form for this scaling, else None."""
        return None

    def fused_on_device(
        self, x: Tensor, levels: NumberFormat, rounding: Rounding, relu: bool, clips: bool
    ) -> tuple[Tensor, Tensor] | None:
        """The same of a tensor on a GPU, which may be half precision; called instead of `forward`."""
        return None

    def _numbers(self) -> tuple[Any, Any]:
        """The level that the magnitude stands for and the smallest magnitude, worked out once."""
        levels, least = self.number_format, self.min_scale
        known = self._known
        if known is None or known[0] is not levels or known[1] != least:
            end = levels.threshold
            numbers = (end if isinstance(end, Tensor) else float(end), self._floor())
            known = vars(self)["_known"] = (levels, least, numbers)
        return known[2]

    def reset_parameters(self) -> None:
        """Set the state to what it is before any data, as torch's layers do with theirs."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        wide = {name: each for name, each in self._buffers.items() if each is not None and each.dtype in WIDE}
        super()._apply(fn, recurse)
        for name, before in wide.items():
            after = self._buffers[name]
            if after is not None and after.is_floating_point() and after.dtype not in WIDE:
                self._buffers[name] = before.to(after.device)
        if any(each.is_meta for each in wide.values()) and not self._on_meta():
            self.reset_parameters()  # what replaces the meta device is not left empty
        return self

    def _on_meta(self) -> bool:
        return any(each is not None and each.is_meta for each in self._buffers.values())

    def _floor(self) -> float | Tensor:
        """The smallest magnitude; one for each channel where bit widths differ."""
        threshold = self.restriction.int_threshold(self.number_format)
        several = isinstance(threshold, Tensor) and threshold.ndim > 0
        return self.min_scale * threshold if several else self.min_scale * float(threshold)

    def extra_repr(self) -> str:
        restriction = "" if type(self.restriction) is FloatScale else f", {self.restriction!r}"
        return (str(self.granularity) if self.axis is None else f"per index of axis {self.axis}") + restriction


def entries(granularity: Granularity, count: int) -> str:
    """How many things of an input have a scale each, in words.

    Example:
        >>> entries(granularity_of(1), 3)
        '3 entries along axis 1'
    """
    if granularity.axis is not None:
        return f"{count} entries along axis {granularity.axis}"
    return f"{count} {'tokens' if isinstance(granularity, PerToken) else granularity}"


def whole(setting: str, number: object, expected: str) -> int:
    """The number as an int, or a `SettingError` if it is no whole number from 1 on.

    Example:
        >>> whole("channels", 3, "a whole number of channels, 1 or more")
        3
    """
    try:
        found = 0 if isinstance(number, bool) else index(number)  # type: ignore[arg-type]
    except TypeError:
        found = 0
    if found < 1:
        raise SettingError(setting, number, expected)
    return found


def usable(statistic: Tensor) -> Tensor:
    """A statistic fit to set a scale by: one that is not finite (from NaN or infinite values) counts as 1.

    Example:
        >>> usable(torch.tensor([2.0, float("inf")]))
        tensor([2., 1.])
    """
    return torch.where(statistic.isfinite(), statistic, 1.0)


def finite(setting: str, number: Any, expected: str = "a finite number") -> float:
    """The number, or a `SettingError` if it is no finite one.

    Example:
        >>> finite("max_value", 6)
        6.0
    """
    try:
        found = float("nan") if isinstance(number, (bool, str)) or number is None else float(number)
    except (TypeError, ValueError, RuntimeError):
        found = float("nan")
    if not math.isfinite(found):
        raise SettingError(setting, number, expected)
    return found
