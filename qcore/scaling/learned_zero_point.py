"""Zero points that are parameters."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.types import Device

from ..errors import SettingError
from ..formats.int_range import IntRange
from ..granularity import Granularity, granularity_of
from ..kernels.derivatives import clamp_through, straight_through
from .stored import StoredScaling, in_backward
from .zero_point import RangeZeroPoint, require_low

__all__ = ["LearnedZeroPoint"]


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
        SettingError: the scaling stores no range, or its statistic knows no lower end.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.quantizers import ShiftedUint8Act
        >>> act = qnn.QuantIdentity(act_quant=ShiftedUint8Act, zero_point="learned", calibration_steps=1)
        >>> _ = act(torch.tensor([-1.0, 1.55])), act(torch.tensor([-1.0, 1.55]))
        >>> act.act_quant.zero_point.current()
        tensor([100.])
    """

    base: Tensor
    fixed: Tensor
    scaling: StoredScaling

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
        if not isinstance(scaling, StoredScaling):
            expected = f"another zero point: {type(scaling).__name__} stores no range that this one could start from"
            raise SettingError("zero_point", "learned", expected, "Write scaling='learned', or zero_point='range'.")
        require_low(scaling)
        granularity = granularity_of(axis, granularity)
        vars(self).update(scaling=scaling, int_range=int_range, granularity=granularity)  # the quantizer has them, too
        count = 1 if granularity.single else (channels or 1) if shape is None else granularity.count(shape)
        self.register_buffer("base", torch.zeros(count, device=device))
        self.register_buffer("fixed", torch.zeros(1, device=device))
        self.offset = nn.Parameter(torch.zeros(count, device=device, dtype=dtype))
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
        known, measured = self.fixed > 0, self.scaling.measured_all()
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
