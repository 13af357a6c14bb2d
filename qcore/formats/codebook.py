"""Levels of a table."""

import math
from collections.abc import Iterable
from ctypes import c_float
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import SettingError
from .number_format import NumberFormat, RoundingLike
from .table import looked_up, nearest_level

__all__ = ["NF4", "Codebook"]


class _Codebook(NamedTuple):
    levels: Any  # numbers when it is made, a tuple of them from then on


class Codebook(_Codebook, NumberFormat):  # type: ignore[misc]  # fields here, properties there
    """Any levels: a number goes to the nearest, a tie to the one of even code; the code is the place in the table.

    The levels are kept as float32 holds them. Other roundings decide between the two levels around a number by how far
    it lies between them.

    Args:
        levels: 2 or more numbers in ascending order.

    Raises:
        SettingError: fewer, in another order, or not finite.

    Example:
        >>> import torch
        >>> from bitwright.qcore import HalfEven
        >>> steep = Codebook((-4, -1, 0, 1, 4))
        >>> steep.nearest(torch.tensor([0.5, 2.4, 2.6, -99.0]), HalfEven())
        tensor([ 0.,  1.,  4., -4.])
        >>> steep.bits, steep.encode(torch.tensor([4.0])), str(steep)
        (3, tensor([4], dtype=torch.uint8), 'codebook (-4, -1, 0, 1, 4)')
    """

    __slots__ = ()

    @property
    def low(self) -> float:
        return self.levels[0]

    @property
    def high(self) -> float:
        return self.levels[-1]

    def edges(self, rounding: RoundingLike) -> tuple[float, float]:
        first, second, *_ = self.levels
        *_, before, last = self.levels
        return first - (second - first) / 2, last + (last - before) / 2

    def inplace(self, steps: Tensor, rounding: Any, relu: bool = False) -> Tensor:
        return looked_up(self.levels, tuple(range(len(self.levels))), steps.clamp_min_(0) if relu else steps, rounding)

    def nearest(self, steps: Tensor, rounding: RoundingLike, relu: bool = False) -> Tensor:
        steps = torch.clamp_min(steps, 0) if relu else steps
        return nearest_level(self.levels, tuple(range(len(self.levels))), steps, rounding)

    def __str__(self) -> str:
        if self.levels == _NF4:
            return "nf4"
        return f"codebook ({', '.join(f'{level:.9g}' for level in self.levels)})"


def _checked(cls: type[Any], levels: Iterable[float]) -> Any:
    expected = "2 or more finite numbers in ascending order"
    try:
        known = [c_float(level).value for level in levels]  # torch.export, which remakes it, makes no tensors then
    except (TypeError, ValueError):
        raise SettingError("levels", levels, expected) from None
    ascending = all(one < other for one, other in pairwise(known))
    if len(known) < 2 or not all(map(math.isfinite, known)) or not ascending:
        raise SettingError("levels", levels, expected, "Two levels that float32 can't tell apart count as one.")
    return tuple.__new__(cls, (tuple(known),))


_Codebook.__new__ = _checked  # not in the subclass, which torch.compile would take for no named tuple


_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
NF4 = Codebook(_NF4)
