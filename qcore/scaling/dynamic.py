"""Scales that follow the tensor at hand."""

from functools import partial

from torch import Tensor

from ..formats.int_range import check_flag
from ..formats.number_format import NumberFormat
from ..granularity import Granularity
from ..kernels.device import rows_on_device
from ..kernels.fused import apply_eagerly
from ..kernels.weights import AbsMaxFakeQuant, AbsMaxRowsFakeQuant, RuledRowsFakeQuant
from ..protocols import Levels, Restriction, Statistic, checked
from ..rounding import HalfEven, HalfUp, Rounding
from .magnitude import MagnitudeScaling, usable
from .restriction import FloatScale, LogScale, MXScale, PowerOfTwoScale, TwoLevel
from .statistics import AbsMax, lower_end, measured

__all__ = ["StatisticScaling"]

_FLOAT_SCALE = FloatScale()
_ABS_MAX = AbsMax()
_RULES = (LogScale, PowerOfTwoScale, MXScale, TwoLevel)  # whose gradients go straight through


class StatisticScaling(MagnitudeScaling):
    """The scale follows a statistic of the tensor at hand, at each forward: the default for weights.

    Args:
        number_format: the levels of the grid.
        statistic: what is measured, see `STATISTICS`.
        restriction: which scales are allowed.
        min_scale: no scale is smaller.
        axis: one scale for each index of this dimension, or None for one.
        granularity: which values share a scale, where ``axis`` can't say it.
        detach_scale: no gradient through the statistic: training is faster, the largest weight gets no extra pull.

    Example:
        >>> import torch
        >>> from bitwright.qcore import IntRange
        >>> StatisticScaling(IntRange(8, signed=True, narrow_range=True))(torch.tensor([0.5, -1.27]))
        tensor(0.0100)
    """

    statistic: Statistic
    detach_scale: bool

    def __init__(
        self,
        number_format: Levels,
        statistic: Statistic = _ABS_MAX,
        restriction: Restriction = _FLOAT_SCALE,
        min_scale: float = 1e-10,
        axis: int | None = None,
        granularity: Granularity | None = None,
        detach_scale: bool = False,
    ) -> None:
        super().__init__(number_format, restriction, min_scale, axis, granularity)
        self.statistic = checked("statistic", statistic)
        self.detach_scale = check_flag("detach_scale", detach_scale)
        own = isinstance(number_format, NumberFormat) and number_format.threshold != number_format.high
        self._to_the_end = not own  # whether the largest magnitude goes to the highest level, as fused forms have it

    def fused(
        self, x: Tensor, levels: NumberFormat, rounding: Rounding, relu: bool, clips: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Values and scale of a weight whose largest magnitude sets the scale."""
        if type(self.restriction) is not FloatScale:
            return self._ruled(x, levels, rounding, clips)
        if clips or type(self.statistic) is not AbsMax:
            return None
        single = self.granularity.single
        rows = x if single else self._rows(x)
        if rows is None or x.numel() == 0 or levels.high >= 1 << 20 or not self._to_the_end:
            return None
        if type(rounding) not in (HalfEven, HalfUp) or levels.low != -levels.high:  # the fused form clips nothing
            return None
        function = AbsMaxFakeQuant if single else AbsMaxRowsFakeQuant
        done = apply_eagerly(function, rows, float(self._floor()), levels, rounding, self.detach_scale)
        if done is None or rows is x:
            return done
        return self.granularity.unrows(done[0], x), self.granularity.compact(done[1].reshape(-1), x.shape)

    def fused_on_device(
        self, x: Tensor, levels: NumberFormat, rounding: Rounding, relu: bool, clips: bool
    ) -> tuple[Tensor, Tensor] | None:
        """The same on a GPU, with a scale for each row."""
        rows = None if self.granularity.single or type(self.restriction) is not FloatScale else self._rows(x)
        if rows is None or relu or clips or type(self.statistic) is not AbsMax or not self._to_the_end:
            return None
        if levels.low != -levels.high:
            return None
        done = rows_on_device(rows, self._numbers()[1], levels, rounding, self.detach_scale)
        if done is None or rows is x:
            return done
        return self.granularity.unrows(done[0], x), self.granularity.compact(done[1].reshape(-1), x.shape)

    def _ruled(self, x: Tensor, levels: NumberFormat, rounding: Rounding, clips: bool) -> tuple[Tensor, Tensor] | None:
        """The same where a rule restricts the scales."""
        granularity = self.granularity
        if type(self.restriction) not in _RULES or type(self.statistic) is not AbsMax or x.numel() == 0:
            return None
        if granularity.broadcasts and not ((granularity.single or self.axis == 0) and x.is_contiguous()):
            return None
        covers = self.covers and levels.symmetric and type(rounding) in (HalfEven, HalfUp)
        rule = partial(self.restriction.scale, number_format=self.number_format)
        rest = (float(self._floor()), levels, rounding, self.detach_scale, covers, clips)
        done = apply_eagerly(RuledRowsFakeQuant, granularity.rows(x), rule, *rest)
        if done is None:
            return None
        return granularity.unrows(done[0], x), granularity.compact(done[1].reshape(-1), x.shape)

    @property
    def covers(self) -> bool:
        """Whether no value is clipped, where the ends are symmetric: by the statistic and the rule for scales."""
        if type(self) is not StatisticScaling or not getattr(self.statistic, "covers", False):
            return False
        covers = getattr(self.restriction, "covers", None)
        return covers is not None and self._to_the_end and covers(self.number_format)

    def _rows(self, x: Tensor) -> Tensor | None:
        """What the fused forms take, of several scales: a tensor whose first dimension counts them."""
        if self.axis == 0:
            return x
        return None if self.granularity.broadcasts else self.granularity.rows(x)

    def forward(self, x: Tensor) -> Tensor:
        """The scale of ``x``."""
        source = x.detach() if self.detach_scale else x
        return self.scale_of(usable(measured(self.statistic, source, self.granularity)), x)

    def low_of(self, x: Tensor) -> Tensor:
        """The lower end of the range of ``x``, for a zero point."""
        return usable(lower_end(self.statistic, x.detach(), self.granularity))

    def extra_repr(self) -> str:
        return f"{self.statistic!r}, {super().extra_repr()}"
