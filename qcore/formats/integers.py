"""Integers: levels that are whole numbers of a range."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .bounds import int_bounds, representable_bounds
from .number_format import NumberFormat, RoundingLike

__all__ = ["Integers", "Interval", "LearnedInterval", "interval", "storage_dtype"]

MANTISSA_BITS = {torch.float32: 24, torch.float64: 53}
_EXACT = 1 << 24  # every float holds the integers up to here


class _Whole(NumberFormat):
    """What integers of so many bits and those between two ends share."""

    __slots__ = ()
    whole = True
    bounds: Any  # the smallest and the largest

    def _ends(self, dtype: torch.dtype) -> tuple[int, int]:
        """The ends, as a type of torch holds them."""
        return Interval(*self.bounds)._ends(dtype)

    def inplace(self, steps: Tensor, rounding: Any, relu: bool = False) -> Tensor:
        return Interval(*self.bounds).inplace(steps, rounding, relu)

    def covered(self, steps: Tensor, rounding: Any) -> Tensor:
        return rounding.inplace(steps)

    def shifted(self, steps: Tensor, rounding: Any, zero_point: Tensor) -> Tensor:
        return Interval(*self.bounds).shifted(steps, rounding, zero_point)

    def nearest(self, steps: Tensor, rounding: RoundingLike, relu: bool = False) -> Tensor:
        low, high = self._ends(steps.dtype)
        return torch.clamp(rounding(steps), 0 if relu else low, high)

    def near(self, steps: Tensor, rounding: RoundingLike, zero_point: Tensor) -> Tensor:
        low, high = self._ends(steps.dtype)
        return torch.clamp(rounding(steps) + zero_point, low, high) - zero_point

    def within(self, steps: Tensor, rounding: RoundingLike, zero_point: Tensor) -> Tensor:
        low, high = self._ends(steps.dtype)
        codes = rounding(steps) + zero_point
        return (codes >= low) & (codes <= high)

    @property
    def levels(self) -> tuple[float, ...]:
        low, high = self.bounds
        return tuple(map(float, range(low, high + 1)))

    @property
    def has_zero(self) -> bool:
        low, high = self.bounds
        return low <= 0 <= high

    def edges(self, rounding: RoundingLike) -> tuple[float, float]:
        """Between these numbers the rounded ones are in range."""
        low, high = self.bounds
        return low - 0.5, high + 0.5

    def inside(self, steps: Tensor, rounding: RoundingLike) -> Tensor:
        low, high = self._ends(steps.dtype)
        codes = rounding(steps)
        return (codes >= low) & (codes <= high)

    @property
    def dtype(self) -> torch.dtype:
        """The smallest type of torch that holds them all."""
        return storage_dtype(*self.bounds)

    def encode(self, steps: Tensor) -> Tensor:
        low, high = self.bounds
        return torch.round(steps).clamp(low, high).to(self.dtype)

    def decode(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return codes.to(dtype)


class _Integers(NamedTuple):
    bit_width: int | Tensor = 8
    signed: bool = True
    narrow_range: bool = False


class Integers(_Integers, _Whole):  # type: ignore[misc]  # fields here, properties there
    """Integers of so many bits; their codes are themselves.

    Args:
        bit_width: how many; a 0-d tensor where it is learned.
        signed: whether they may be negative.
        narrow_range: whether the range leaves out one end, see `int_bounds`.

    Example:
        >>> Integers(4).bounds, str(Integers(4, narrow_range=True)), Integers(4).dtype
        ((-8, 7), 'int4 narrow', torch.int8)
    """

    __slots__ = ()

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest, as plain numbers."""
        return int_bounds(int(self.bit_width), self.signed, self.narrow_range)

    @property
    def bits(self) -> int:
        return int(self.bit_width)

    @property
    def mantissa_bits(self) -> int:
        return self.bits - 1 - self.signed

    @property
    def low(self) -> int:
        return self.bounds[0]

    @property
    def high(self) -> int:
        return self.bounds[1]

    def __str__(self) -> str:
        kind = f"{'int' if self.signed else 'uint'}{int(self.bit_width)}"
        return f"{kind} narrow" if self.narrow_range else kind


class _Interval(NamedTuple):
    low: Any
    high: Any


class Interval(_Interval, _Whole):  # type: ignore[misc]  # fields here, properties there
    """The integers between two ends, both included: what the arithmetic works with.

    Args:
        low: the smallest.
        high: the largest.

    Example:
        >>> import torch
        >>> from bitwright.qcore import HalfEven
        >>> Interval(-2, 5).nearest(torch.tensor([0.5, 9.0, -9.0]), HalfEven())
        tensor([ 0.,  5., -2.])
    """

    __slots__ = ()

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The smallest and the largest."""
        return self.low, self.high

    def _ends(self, dtype: torch.dtype) -> tuple[int, int]:  # by fields alone: torch 2.9 compiles no properties
        low, high = self.low, self.high
        if high >= _EXACT or low < -_EXACT:
            return representable_bounds(low, high, MANTISSA_BITS[dtype])
        return low, high

    # Integers are quantized more often than all else: no call more than it takes

    def inplace(self, steps: Tensor, rounding: Any, relu: bool = False) -> Tensor:
        low, high = self
        if high >= _EXACT or low < -_EXACT:
            low, high = representable_bounds(low, high, MANTISSA_BITS[steps.dtype])
        return rounding.inplace(steps).clamp_(0 if relu else low, high)

    def shifted(self, steps: Tensor, rounding: Any, zero_point: Tensor) -> Tensor:
        low, high = self
        if high >= _EXACT or low < -_EXACT:
            low, high = representable_bounds(low, high, MANTISSA_BITS[steps.dtype])
        codes = rounding.inplace(steps)
        if zero_point.numel() == 1:
            shift = zero_point.item()
            return codes.clamp_(low - shift, high - shift)
        return codes.add_(zero_point).clamp_(low, high).sub_(zero_point)

    def edges(self, rounding: RoundingLike) -> tuple[float, float]:
        low, high = self
        return low - 0.5, high + 0.5

    @property
    def few(self) -> bool:
        return self[1] - self[0] < 512

    @property
    def threshold(self) -> Any:
        return self.high if not self.signed else -self.low

    @property
    def signed(self) -> bool:
        return self.low < 0

    def __str__(self) -> str:
        return f"integers from {self.low} to {self.high}"


class LearnedInterval(Interval):
    """An interval whose ends are tensors, as a learned bit width gives them."""

    __slots__ = ()
    learned = True


def interval(low: Any, high: Any) -> Interval:
    """The integers from one end to the other: plain numbers, or tensors where a bit width is learned.

    Example:
        >>> interval(-8, 7).learned, interval(-torch.tensor(8.0), torch.tensor(7.0)).learned
        (False, True)
    """
    plain = isinstance(low, int) and isinstance(high, int)
    return Interval(low, high) if plain else LearnedInterval(low, high)


def storage_dtype(low: int, high: int) -> torch.dtype:
    """The smallest torch integer type that holds every integer from ``low`` to ``high``.

    Example:
        >>> storage_dtype(-7, 7), storage_dtype(0, 255), storage_dtype(0, 65535)
        (torch.int8, torch.uint8, torch.int32)
    """
    for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64
