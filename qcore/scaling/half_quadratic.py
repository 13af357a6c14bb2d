"""Half-quadratic quantization: zero points and scales that suit weights with outliers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..formats.int_range import IntRange, check_flag
from ..granularity import Granularity
from ..kernels.composed import composed
from ..protocols import Levels
from .magnitude import finite, whole
from .zero_point import RangeZeroPoint

__all__ = ["HalfQuadraticRange", "HalfQuadraticZeroPoint"]


class HalfQuadraticZeroPoint(RangeZeroPoint):
    """HQO's zero point: the one with the least sum of ``|w - quantized w| ** norm``, with a norm below 1.

    Such a norm makes little of large errors, so that outliers don't set the grid. In turns the errors e are shrunk,
    ``sign(e) * relu(|e| - |e|**(norm - 1) / beta)``, and the zero point becomes the mean of ``q - (w - e) / scale``
    over the weights that share it; beta grows at each step. Each zero point is the best that was found for its weights,
    and never worse than that of the range. It is a float number as in the paper, or rounded, which is what integers
    need. Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023, whose values the
    settings have.

    It is worked out anew at each forward, for weights that are quantized after training.

    Args:
        scaling: a scaling that knows the lower end (``low_of``): with a statistic such as `MinMax`.
        int_range: the integers of the grid, unsigned.
        axis, granularity: as for the scaling.
        shape: of the weight.
        round_zero_point: the zero point is a whole number in the range of the integers.
        hqo_norm: the exponent, above 0, up to 1.
        hqo_beta: how little is shrunk at the first step, above 0.
        hqo_growth: what beta is multiplied by at each step, 1 or more.
        hqo_steps: how many steps there are.

    Raises:
        SettingError: numbers outside these ranges, signed integers, a learned bit width or one above 16, no weight, or
            a scaling that knows no lower end.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import ShiftedUint4WeightPerGroupHQO
        >>> weight = qnn.QuantLinear(64, 2, weight_quant=ShiftedUint4WeightPerGroupHQO).quant_weight()
        >>> weight.grid.zero_point.shape, str(weight.grid.number_format)
        (torch.Size([2, 2]), 'uint4 with a float zero point')
    """

    def __init__(
        self,
        scaling: nn.Module,
        int_range: IntRange,
        axis: int | None = None,
        granularity: Granularity | None = None,
        shape: Sequence[int] | None = None,
        round_zero_point: bool = False,
        hqo_norm: float = 0.7,
        hqo_beta: float = 10.0,
        hqo_growth: float = 1.01,
        hqo_steps: int = 20,
    ) -> None:
        super().__init__(scaling, int_range, axis, granularity)
        self.whole = check_flag("round_zero_point", round_zero_point)
        if shape is None:
            expected = "another zero point: half-quadratic quantization is for weights"
            raise SettingError("zero_point", "hqo", expected, "Write zero_point='range'.")
        if int_range.learned or int_range.signed or int_range.narrow_range or int(int_range.bit_width) > 16:
            expected = f"another zero point for {int_range}: it is for unsigned integers of 2 to 16 bits"
            raise SettingError("zero_point", "hqo", expected, "Write signed=False and narrow_range=False.")
        self.search = _Search(hqo_norm, hqo_beta, hqo_growth, hqo_steps)

    @torch.no_grad()
    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        """The zero point for the scale that the scaling just gave for ``x``."""
        rows = self.granularity.rows(x.to(scale.dtype))
        places = rows / scale.reshape(-1, 1)
        start = -(self.scaling.low_of(x).to(scale.dtype).reshape(-1, 1) / scale.reshape(-1, 1))  # type: ignore[operator]
        found = self._searched(rows, places, scale.reshape(-1, 1), start)
        high = 2 ** int(self.int_range.bit_width) - 1
        if self.whole:
            found = found.round().clamp(0, high)
        plain = start.round().clamp(0, high)
        worse = self._error(rows, places, scale, found) > self._error(rows, places, scale, plain)
        found = torch.where(worse, plain, found)
        return self.granularity.compact(found.reshape(scale.shape if scale.ndim == 0 else -1), x.shape)

    def _searched(self, rows: Tensor, places: Tensor, step: Tensor, start: Tensor) -> Tensor:
        """The best of the zero points that are tried, of each row, from that of the range on."""
        best, least = start, self._error(rows, places, step, start)
        zero_point = start
        for beta in self.search.betas():
            codes = self._codes(places, zero_point)
            kept = rows - self.search.shrunk(rows - (codes - zero_point) * step, beta)
            zero_point = (codes - kept / step).mean(1, keepdim=True)
            error = self._error(rows, places, step, zero_point)
            better = error < least
            best, least = torch.where(better, zero_point, best), torch.where(better, error, least)
        return best

    def _codes(self, places: Tensor, zero_point: Tensor) -> Tensor:
        return (places + zero_point).round().clamp(0, 2 ** int(self.int_range.bit_width) - 1)

    def _error(self, rows: Tensor, places: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
        moved = (self._codes(places, zero_point) - zero_point) * step.reshape(-1, 1)
        return self.search.error(rows - moved)

    def __repr__(self) -> str:
        return f"HalfQuadraticZeroPoint({'whole' if self.whole else 'float'})"


class HalfQuadraticRange:
    """HQO's range for a grid without zero point: the one with the least sum of ``|w - quantized w| ** norm``.

    As `HalfQuadraticZeroPoint`, with the scale in the place of the zero point: ``sum(q * (w - e)) / sum(q**2)``. It is
    never worse than the largest magnitude, and has no gradient.

    Args:
        number_format: the levels of the grid.
        hqo_norm: the exponent, above 0, up to 1.
        hqo_beta: how little is shrunk at the first step, above 0.
        hqo_growth: what beta is multiplied by at each step, 1 or more.
        hqo_steps: how many steps there are.

    Raises:
        SettingError: numbers outside these ranges.

    Example:
        >>> from bitwright.qcore import IntRange
        >>> rows = torch.tensor([[-0.2, 0.1, 0.3, -0.1, 0.3, 0.2, 0.34]])
        >>> HalfQuadraticRange(IntRange(3, signed=True, narrow_range=True))(rows) < 0.34
        tensor([True])
    """

    def __init__(
        self,
        number_format: Levels,
        hqo_norm: float = 0.7,
        hqo_beta: float = 10.0,
        hqo_growth: float = 1.01,
        hqo_steps: int = 20,
    ) -> None:
        self.number_format = number_format
        self.search = _Search(hqo_norm, hqo_beta, hqo_growth, hqo_steps)

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """The best of the ranges, of each row."""
        levels = self.number_format.settled(lambda width: width.reshape(-1, 1))
        threshold = self.number_format.threshold
        threshold = threshold.reshape(-1, 1) if isinstance(threshold, Tensor) else threshold  # of learned widths
        tiny = torch.finfo(rows.dtype).tiny
        signed = self.number_format.signed
        start = rows.abs().amax(1, keepdim=True) if signed else rows.amax(1, keepdim=True).clamp(min=0)
        step = start / threshold
        values = composed(rows, step.clamp_min(tiny), levels)
        best, least = step, self.search.error(rows - values)
        for beta in self.search.betas():
            places = values / step.clamp_min(tiny)
            kept = rows - self.search.shrunk(rows - values, beta)
            weight = places.square().sum(1, keepdim=True)
            fitted = (places * kept).sum(1, keepdim=True) / weight
            step = torch.where((weight > 0) & (fitted > 0), fitted, step)
            values = composed(rows, step.clamp_min(tiny), levels)
            error = self.search.error(rows - values)
            better = error < least
            best, least = torch.where(better, step, best), torch.where(better, error, least)
        return (best * threshold).squeeze(1)

    def __repr__(self) -> str:
        return "HalfQuadraticRange()"


class _Search:
    """The numbers of a search, checked, and what it does with errors."""

    def __init__(self, norm: object, beta: object, growth: object, steps: object) -> None:
        self.norm = finite("hqo_norm", norm, "a number above 0, up to 1")
        if not 0 < self.norm <= 1:
            raise SettingError("hqo_norm", norm, "a number above 0, up to 1")
        self.beta = finite("hqo_beta", beta, "a number above 0")
        if self.beta <= 0:
            raise SettingError("hqo_beta", beta, "a number above 0")
        self.growth = finite("hqo_growth", growth, "a number from 1 on")
        if self.growth < 1:
            raise SettingError("hqo_growth", growth, "a number from 1 on")
        self.steps = whole("hqo_steps", steps, "a whole number of steps, 1 or more")

    def betas(self) -> list[float]:
        """One for each step."""
        return [self.beta * self.growth**step for step in range(self.steps)]

    def shrunk(self, errors: Tensor, beta: float) -> Tensor:
        """The errors moved toward 0, small ones all the way: what outliers may keep."""
        size = errors.abs()
        return errors.sign() * (size - size.clamp_min(_TINY) ** (self.norm - 1) / beta).clamp_min(0)

    def error(self, errors: Tensor) -> Tensor:
        """The sum that is made small, of each row."""
        return (errors.abs() ** self.norm).sum(1, keepdim=True)


_TINY = 1e-30  # for the power of 0, which is infinite
