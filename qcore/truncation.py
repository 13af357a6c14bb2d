"""Dropping the low bits of a sum: quantization without a scale of its own."""

from typing import Any

import torch
from torch import Tensor

from . import protocols
from .errors import QuantizerError
from .formats.integers import Integers
from .formats.number_format import whole_number
from .grid import Grid, integers_of
from .kernels.derivatives import clamp_through
from .locate import path_of
from .protocols import checked
from .rounding import Floor, round_straight_through
from .tensor_quant import TensorQuant
from .tracing import exporting

__all__ = ["TruncQuant"]

_FLOOR = Floor()


class Truncation:
    """Rounding of what is shifted to the right: first to the integers that the values stand for, then of these.

    A sum of floats may lie a little beside the integer that it stands for; without the first step, `Floor` would take
    the one below.

    Args:
        rounding: of integers after the shift.

    Example:
        >>> rounding = Truncation(Floor())
        >>> rounding.shift = 2
        >>> rounding(torch.tensor([0.9999999, 0.75])), Floor()(torch.tensor([0.9999999, 0.75]))
        (tensor([1., 0.]), tensor([0., 0.]))
    """

    def __init__(self, rounding: protocols.Rounding) -> None:
        self.rounding = rounding
        self.name = getattr(rounding, "name", type(rounding).__name__)
        self.shift = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Whole numbers for those of a tensor, in units of the result's scale."""
        return self.rounding(torch.round(x * 2.0**self.shift) / 2.0**self.shift)


class TruncQuant(TensorQuant):
    """Drops the low bits of integers, so that so many remain: what hardware does with a sum in a wide accumulator.

    The scale of what it gets, times ``2**dropped``, is the scale of the result. It quantizes the output of layers that
    sum products, and tensors that arrive with a grid. What is dropped is what the grid's integers have beyond
    ``bit_width``, whether the values use them or not; a grid that has no more is left alone.

    Args:
        bit_width: of the result, 2 to 32; its sign is that of what comes in.
        rounding: callable on the integers over ``2**dropped``; by default `Floor`, a shift to the right.

    Raises:
        SettingError: another bit width.
        QuantizerError: in forward, where values lie on no grid of integers, or have a zero point.

    Example:
        >>> quant = TruncQuant(4)
        >>> values, grid = quant.quantize(torch.tensor([1.0, 31.5, -32.0]), Grid(torch.tensor(0.5)))
        >>> values, grid.scale, grid.bit_width
        (tensor([  0.,  24., -32.]), tensor(8.), 4)
    """

    truncates = True

    def __init__(self, bit_width: int, rounding: protocols.Rounding = _FLOOR) -> None:
        super().__init__()
        self.bit_width = whole_number("bit_width", bit_width, 2, 32)
        self.rounding = Truncation(checked("rounding", rounding))
        self._seen: Grid | None = None  # torch.export carries plain tensors: the grid is the one of the last forward

    def _quantize(self, x: Tensor, *context: Any) -> tuple[Tensor, Grid]:
        sums: Grid | None = context[0] if context else None
        if sums is None and exporting():
            sums = self._seen
        if sums is None:
            raise QuantizerError(
                f"{path_of(self)}: {self.scheme()} drops bits of integers, and the values lie on no grid. Give the "
                "layer a quantized input, or another quantizer: Int8Act."
            )
        self._check(sums)
        if not torch.compiler.is_compiling():
            self._seen = sums
        levels = integers_of(sums)
        shift = max(int(levels.bit_width) - self.bit_width, 0)
        if not torch.compiler.is_compiling():
            self.rounding.shift = shift
        number_format = levels if shift == 0 else Integers(self.bit_width, levels.signed)
        source = None if sums.source is None else ("truncated", 2**shift, sums.source)
        after = sums.replace(scale=sums.scale * 2.0**shift, number_format=number_format, source=source)
        scale = sums.along(sums.scale, x.shape)
        steps = round_straight_through(x / scale)
        short = clamp_through(
            round_straight_through(steps / 2.0**shift, self.rounding.rounding), number_format.low, number_format.high
        )
        return short * (scale * 2.0**shift), after

    def _check(self, sums: Grid) -> None:
        if not sums.number_format.whole:
            raise QuantizerError(
                f"{path_of(self)}: {self.scheme()} drops bits of integers, and the values are on a grid of "
                f"{sums.number_format}. Write Int8Act in its place."
            )
        if sums.zero_point is not None:
            raise QuantizerError(
                f"{path_of(self)}: {self.scheme()} shifts integers to the right, and these have a zero point, which a "
                "shift makes a fraction. Quantize the input without one (Int8Act, Uint8Act), or write Int8Act in the "
                "place of this quantizer."
            )

    def scheme(self) -> str:
        """What the numbers mean, such as ``truncated to 8 bits, floor``."""
        return f"truncated to {self.bit_width} bits, {self.rounding.name}"

    def extra_repr(self) -> str:
        return self.scheme()

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_seen": None}
