"""Bit widths that are learned."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.types import Device

from .derivatives import straight_through
from .errors import SettingError
from .int_range import MAX_BIT_WIDTH, check_bit_width
from .models import require_model
from .rounding import HalfEven, round_straight_through

__all__ = ["LearnedBitWidth", "bit_width_report", "size_penalty"]


class LearnedBitWidth(nn.Module):
    """A bit width that training adjusts: ``weight_bit_width=LearnedBitWidth``, with a penalty on size in the loss.

    The parameter is the distance from the smallest width; its use is rounded to a whole number of bits, gradients
    straight through (after Brevitas' `BitWidthParameter`). At either end of the allowed widths, and beyond, the
    gradient goes on, so that training may leave the end again.

    Args:
        initial_bit_width: where training starts.
        min_bit_width: the smallest width allowed.
        max_bit_width: the largest.

    Raises:
        SettingError: widths that are no whole numbers from 2 to 32, or not in order.

    Example:
        >>> width = LearnedBitWidth(initial_bit_width=6)
        >>> width(), width.report()
        (tensor(6., grad_fn=<AddBackward0>), {'bit_width': 6, 'exact': 6.0, 'min': 2, 'max': 8})
    """

    def __init__(
        self,
        initial_bit_width: int = 8,
        min_bit_width: int = 2,
        max_bit_width: int = 8,
        shape: tuple[int, ...] | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.min_bit_width = check_bit_width("min_bit_width", min_bit_width)
        self.max_bit_width = check_bit_width("max_bit_width", max_bit_width)
        initial = check_bit_width("initial_bit_width", initial_bit_width)
        if not self.min_bit_width <= initial <= self.max_bit_width:
            raise SettingError(
                "initial_bit_width",
                initial,
                f"a bit width from min_bit_width={self.min_bit_width} to max_bit_width={self.max_bit_width}",
                f"Write max_bit_width={initial}." if self.max_bit_width < initial <= MAX_BIT_WIDTH else "",
            )
        self.elements = None if shape is None else int(torch.Size(shape).numel())
        self.start = float(initial - self.min_bit_width)
        self.offset = nn.Parameter(torch.tensor([self.start], device=device, dtype=dtype))  # not 0-d: may be sharded

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the width to where training starts."""
        self.offset.fill_(self.start)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LearnedBitWidth":
        left = self.offset.is_meta
        super()._apply(fn, recurse)
        if left and not self.offset.is_meta:
            self.reset_parameters()  # what replaces the meta device is not left empty
        return self

    def exact(self) -> Tensor:
        """The width before rounding, differentiable; beyond the largest width too, so that training finds back."""
        offset = self.offset.reshape(())
        above = torch.where(offset < 0, -offset, offset)  # abs has no gradient at 0, where some start
        width = above + self.min_bit_width
        return straight_through(width, width.detach().clamp_max(self.max_bit_width))

    def forward(self) -> Tensor:
        """The width in use: a whole number in a 0-d tensor."""
        return round_straight_through(self.exact(), HalfEven())

    def report(self) -> dict[str, float | int]:
        """The width in use, the one before rounding, and the limits, as plain numbers."""
        with torch.no_grad():
            return {
                "bit_width": int(self()),
                "exact": round(float(self.exact()), 4),
                "min": self.min_bit_width,
                "max": self.max_bit_width,
            }

    def extra_repr(self) -> str:
        return f"min_bit_width={self.min_bit_width}, max_bit_width={self.max_bit_width}"


def bit_width_report(model: nn.Module) -> dict[str, dict[str, float | int]]:
    """What every learned bit width of a model stands at, by the path of its module.

    Raises:
        QuantizerError: not a model.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.qcore import LearnedBitWidth
        >>> model = nn.Sequential(qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth))
        >>> bit_width_report(model)
        {'0.weight_quant.bit_width': {'bit_width': 8, 'exact': 8.0, 'min': 2, 'max': 8}}
    """
    require_model("bit_width_report", model)
    return {name: module.report() for name, module in model.named_modules() if isinstance(module, LearnedBitWidth)}


def size_penalty(model: nn.Module) -> Tensor:
    """The average number of bits of the weights whose width is learned, weighted by size: add a share to the loss.

    Returns:
        A differentiable 0-d tensor; 0 if nothing is learned.

    Raises:
        QuantizerError: not a model.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.qcore import LearnedBitWidth
        >>> size_penalty(qnn.QuantLinear(4, 2, weight_bit_width=LearnedBitWidth)).item()
        8.0
    """
    require_model("size_penalty", model)
    learned = [module for module in model.modules() if isinstance(module, LearnedBitWidth) and module.elements]
    if not learned:
        return torch.zeros(())
    total = sum(module.elements or 0 for module in learned)
    return torch.stack([module.exact() * (module.elements or 0) for module in learned]).sum() / total
