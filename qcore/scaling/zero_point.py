"""Where a zero point comes from: the integer that stands for 0 in a range that is not centred on it.

A zero point is a callable ``(x, scale) -> Tensor`` of whole numbers shaped like the scale. It must lie in range, so
that 0 is on the grid (padding, ReLU).
"""

from torch import Tensor, nn

from ..errors import SettingError
from ..formats.int_range import IntRange
from ..granularity import Granularity, granularity_of
from ..kernels.derivatives import clamp_through
from ..rounding import HalfEven, round_straight_through

__all__ = ["RangeZeroPoint", "require_low"]


class RangeZeroPoint:
    """The integer for 0 when the smallest integer stands for the lower end of the range.

    The lower end is the scaling's: measured, collected or learned together with the scale, so that both end their
    collection in the same step. Where it is learned, gradients pass through the rounding.

    Args:
        scaling: a scaling that knows the lower end (``low_of``): with a statistic such as `MinMax`.
        int_range: the integers of the grid.
        axis, granularity: as for the scaling.

    Raises:
        SettingError: the scaling, or its statistic, knows no lower end.

    Example:
        >>> import torch
        >>> from bitwright.qcore import MinMax, StatisticScaling
        >>> eight = IntRange(8, signed=False)
        >>> scaling = StatisticScaling(eight, MinMax())
        >>> x = torch.tensor([-1.0, 1.55])
        >>> RangeZeroPoint(scaling, eight)(x, scaling(x))
        tensor(100.)
    """

    whole = True  # whether zero points are whole numbers, so that 0 is on the grid

    def __init__(
        self,
        scaling: nn.Module,
        int_range: IntRange,
        axis: int | None = None,
        granularity: Granularity | None = None,
    ) -> None:
        require_low(scaling)
        self.scaling = scaling
        self.int_range = int_range
        self.granularity = granularity_of(axis, granularity)

    @property
    def dynamic(self) -> bool:
        """Whether another input gets another zero point in evaluation."""
        return getattr(self.scaling, "dynamic", True)

    def __call__(self, x: Tensor, scale: Tensor) -> Tensor:
        """The zero point for the scale that the scaling just gave for ``x``."""
        low = self.scaling.low_of(x)  # type: ignore[operator]
        smallest, largest = self.int_range.bounds(lambda width: self.granularity.compact(width, x.shape))
        offset = self.granularity.compact(low, x.shape).to(scale.dtype) / scale
        return clamp_through(smallest - round_straight_through(offset, HalfEven()), smallest, largest)

    def __repr__(self) -> str:
        return "RangeZeroPoint()"


def require_low(scaling: nn.Module) -> None:
    """Refuse a scaling that knows no lower end, by a `SettingError`.

    Example:
        >>> from bitwright.qcore import IntRange, MinMax, StatisticScaling
        >>> require_low(StatisticScaling(IntRange(8, signed=False), MinMax()))
    """
    if not hasattr(scaling, "low_of"):
        raise SettingError(
            "scaling",
            type(scaling).__name__,
            "a scaling that knows the lower end of the range (`low_of`), for the zero point",
            "Write scaling='statistic', 'learned', 'calibrated' or 'running', or zero_point=None.",
        )
    statistic = getattr(scaling, "statistic", None)
    if statistic is not None and not hasattr(statistic, "low"):
        raise SettingError(
            "statistic",
            statistic,
            "a statistic with a lower end (`low`), for the zero point",
            "Write statistic='min_max' or statistic='percentile_interval', or zero_point=None.",
        )
