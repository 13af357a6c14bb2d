"""The grid of a quantized tensor as plain integers and floats, for files and for integer arithmetic."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..qcore.int_range import int_bounds

__all__ = ["Entering", "IntegerGrid", "Quantized"]


@dataclass(frozen=True, eq=False)
class IntegerGrid:
    """Where the integers of a tensor stand: ``value = (integer - zero_point) * scale``.

    Args:
        name: path of the quantizer that the grid comes from; of the layer, for sums of products.
        scale: float32, 0-d, or 1-d with one for each index of ``axis``.
        zero_point: int64, shaped like the scale.
        bit_width: number of bits.
        signed: whether integers may be negative.
        narrow_range: whether the smallest (signed) or largest (unsigned) integer is left out.
        axis: the dimension with several scales, or None.

    Example:
        >>> grid = IntegerGrid("act", torch.tensor(0.5), torch.tensor(3), 4, signed=False)
        >>> grid.bounds, grid.values(torch.tensor([3, 5]))
        ((0, 15), tensor([0., 1.]))
    """

    name: str
    scale: Tensor
    zero_point: Tensor
    bit_width: int
    signed: bool
    narrow_range: bool = False
    axis: int | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        return int_bounds(self.bit_width, self.signed, self.narrow_range)

    @property
    def centred_bounds(self) -> tuple[int, int]:
        """The same for integers minus their zero points, over all scales."""
        low, high = self.bounds
        return low - int(self.zero_point.max()), high - int(self.zero_point.min())

    def shaped(self, tensor: Tensor, ndim: int) -> Tensor:
        """The scale or zero point, shaped so that it broadcasts against a tensor of ``ndim`` dimensions."""
        if self.axis is None:
            return tensor
        return tensor.reshape([-1 if dim == self.axis % ndim else 1 for dim in range(ndim)])

    def values(self, codes: Tensor) -> Tensor:
        """The float32 values of integers, computed as ``DequantizeLinear`` does."""
        centred = codes.to(torch.int64) - self.shaped(self.zero_point, codes.ndim)
        return centred.to(torch.float32) * self.shaped(self.scale, codes.ndim)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntegerGrid):
            return NotImplemented
        plain = ("name", "bit_width", "signed", "narrow_range", "axis")
        return all(getattr(self, each) == getattr(other, each) for each in plain) and (
            torch.equal(self.scale, other.scale) and torch.equal(self.zero_point, other.zero_point)
        )

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Such as ``int4 narrow, scale 0.5, zero point 3``."""
        kind = f"{'' if self.signed else 'u'}int{self.bit_width}{' narrow' if self.narrow_range else ''}"
        if self.axis is not None:
            scale = f"{self.scale.numel()} scales along axis {self.axis}"
        else:
            scale = f"scale {self.scale.item():.6g}"
        zero = f", zero point {self.zero_point.item()}" if self.axis is None and bool(self.zero_point != 0) else ""
        return f"{kind}, {scale}{zero}"


@dataclass(frozen=True, eq=False)
class Entering:
    """The integers that a quantizer takes: ``value = sum of integer * scale``, over terms, and then the bounds.

    Args:
        scales: of each term, float32: 0-d, or 1-d with one for each index of ``axis``. Integers are centred: their zero
            point is subtracted.
        axis: the dimension with several scales, None without one, and -1 where they vary along several dimensions.
        low: values below count as this (ReLU), or None.
        high: values above count as this (ReLU6), or None.
        rounding: of the quantizer: the name of its class or function.

    Example:
        >>> Entering((torch.tensor(0.5),), low=0.0) == Entering((torch.tensor(0.5),))
        False
    """

    scales: tuple[Tensor, ...]
    axis: int | None = None
    low: float | None = None
    high: float | None = None
    rounding: str = "HalfEven"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entering):
            return NotImplemented
        plain = ("axis", "low", "high", "rounding")
        alike = len(self.scales) == len(other.scales) and all(map(torch.equal, self.scales, other.scales))
        return alike and all(getattr(self, each) == getattr(other, each) for each in plain)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Quantized:
    """What one quantizer does: the grid, and the integers where the tensor is a parameter.

    Args:
        grid: where the integers stand.
        codes: the integers of a weight or bias, in the smallest type that holds them; None for activations, which are
            computed.
        entering: what an activation's quantizer takes; None where it takes floats.

    Example:
        >>> grid = IntegerGrid("fc.weight_quant", torch.tensor(0.5), torch.tensor(0), 4, signed=True)
        >>> print(Quantized(grid, torch.tensor([[1, -2]], dtype=torch.int8)))
        (1, 2) int4, scale 0.5
    """

    grid: IntegerGrid
    codes: Tensor | None = None
    entering: Entering | None = None

    @property
    def values(self) -> Tensor | None:
        """The values that the integers stand for, float32."""
        return None if self.codes is None else self.grid.values(self.codes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Quantized):
            return NotImplemented
        if self.codes is None or other.codes is None:
            return self.grid == other.grid and self.codes is other.codes and self.entering == other.entering
        alike = self.codes.dtype == other.codes.dtype and torch.equal(self.codes, other.codes)
        return alike and self.grid == other.grid

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return str(self.grid) if self.codes is None else f"{tuple(self.codes.shape)} {self.grid}"
