"""Where a zero point comes from: the integer that stands for 0 in a range that is not centred on it.

A zero point is a callable ``(x, scale) -> Tensor`` of whole numbers shaped like the scale. It must lie in range, so
that 0 is on the grid (padding, ReLU).
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.types import Device

from ..errors import SettingError
from ..formats.int_range import IntRange
from ..granularity import Granularity, granularity_of
from ..kernels.derivatives import clamp_through, straight_through
from ..rounding import HalfEven, round_straight_through
from .stored import StoredScaling, in_backward

__all__ = ["LearnedZeroPoint", "RangeZeroPoint"]


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
        _check_low(scaling)
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


class LearnedZeroPoint(nn.Module, RangeZeroPoint):
    """A zero point that is a parameter of its own, in units of integers, first set from the range.

    It follows the range while that is measured, and is learned from then on: its gradient is minus the scale for every
    value that is clipped, and 0 inside the range, where a zero point changes nothing. It is rounded, and clipped to the
    integers of the grid, with a straight-through gradient. The range that the scaling stores then has one end to learn,
    its width; ``zero_point="range"`` learns the lower end in its place.

    State, fixed from construction on: ``base / fixed``, where it started, and ``offset``, what was learned since.
    ``fixed`` is 0 as long as it follows the range.

    Args:
        scaling: a scaling that knows the lower end (``low_of``): with a statistic such as `MinMax`.
        int_range: the integers of the grid.
        axis, granularity: as for the scaling.
        channels: how many there are, where known.
        shape: of the tensor that is quantized, where known.

    Raises:
        SettingError: the scaling, or its statistic, knows no lower end.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> act = qnn.QuantIdentity(act_quant="ShiftedUint8Act", zero_point="learned", calibration_steps=1)
        >>> _ = act(torch.tensor([-1.0, 1.55])), act(torch.tensor([-1.0, 1.55]))
        >>> act.act_quant.zero_point.current()
        tensor([100.])
    """

    base: Tensor
    fixed: Tensor

    def __init__(
        self,
        scaling: nn.Module,
        int_range: IntRange,
        axis: int | None = None,
        granularity: Granularity | None = None,
        channels: int | None = None,
        shape: Sequence[int] | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        _check_low(scaling)
        granularity = granularity_of(axis, granularity)
        vars(self).update(scaling=scaling, int_range=int_range, granularity=granularity)  # the quantizer has them, too
        count = 1 if granularity.single else (channels or 1) if shape is None else granularity.count(shape)
        self.register_buffer("base", torch.zeros(count, device=device))
        self.register_buffer("fixed", torch.zeros(1, device=device))
        self.offset = nn.Parameter(torch.zeros(count, device=device, dtype=dtype))
        if isinstance(scaling, StoredScaling):
            scaling.hand_over_low(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Follow the range again."""
        for each in (self.base, self.fixed, self.offset):
            each.zero_()

    def current(self) -> Tensor:
        """The zero points before they are rounded, one for each scale, in a flat tensor."""
        return (self.base / torch.where(self.fixed > 0, self.fixed, 1.0) + self.offset).detach()

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """The zero point for the scale that the scaling just gave for ``x``."""
        with torch.no_grad():
            ranged = RangeZeroPoint.__call__(self, x, scale.detach())
        fixed = self.fixed > 0
        learned = self.base / torch.where(fixed, self.fixed, 1.0) + self.offset
        found = torch.where(fixed, learned, ranged.reshape(-1).to(learned.dtype)).reshape(scale.shape)
        if self.training and not in_backward():
            self._follow(ranged.reshape(-1))
        bounds = self.int_range.bounds(lambda width: self.granularity.compact(width, x.shape))
        return straight_through(found, clamp_through(found.detach().round(), *bounds)).to(scale.dtype)

    @torch.no_grad()
    def _follow(self, ranged: Tensor) -> None:
        """Take the zero point of the range, unless it is learned; after the last measurement, learn from it on."""
        known, scaling = self.fixed > 0, self.scaling
        measured = scaling.measured_all() if isinstance(scaling, StoredScaling) else torch.ones_like(known)
        self.base.copy_(torch.where(known, self.base, ranged.to(self.base.dtype)))
        self.fixed.copy_(torch.where(known, self.fixed, measured.to(self.fixed.dtype)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.is_floating_point() and after.itemsize < 4:
                self._buffers[name] = buffer.to(after.device)  # zero points of 16 bits are none in half precision
        if any(each is not None and each.is_meta for each in before.values()) and not self.base.is_meta:
            self.reset_parameters()  # what replaces the meta device is not left empty
        return self

    def extra_repr(self) -> str:
        return ""

    def __repr__(self) -> str:
        return "LearnedZeroPoint()"


def _check_low(scaling: nn.Module) -> None:
    """Refuse a scaling that knows no lower end."""
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
