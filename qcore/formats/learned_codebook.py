"""Levels of a table that training adjusts."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.types import Device

from ..errors import QuantizerError
from ..locate import path_of
from ..tracing import is_tracing
from .codebook import Codebook
from .number_format import NumberFormat, RoundingLike
from .table import nearest_learned

__all__ = ["LearnedCodebook", "LearnedLevels"]


class LearnedLevels(nn.Module):
    """The levels of a codebook as a parameter: ``weight_learned_levels=True``.

    A level's gradient is the sum of the gradients of the values that lie on it, times their scales, as in LQ-Nets
    (Zhang et al., 2018). Training may move levels past each other: they are sorted at each use.

    Args:
        levels: where training starts: 2 or more numbers in ascending order.

    Raises:
        SettingError: fewer, in another order, or not finite.

    Example:
        >>> LearnedLevels((-1, 0, 0.5))()
        tensor([-1.0000,  0.0000,  0.5000], grad_fn=<SortBackward0>)
    """

    def __init__(self, levels: Iterable[float], device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.start = levels if isinstance(levels, Codebook) else Codebook(levels)
        self.table = nn.Parameter(torch.tensor(self.start.levels, device=device, dtype=dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the levels to where training starts."""
        self.table.copy_(torch.tensor(self.start.levels))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LearnedLevels":
        left = self.table.is_meta
        super()._apply(fn, recurse)
        if left and not self.table.is_meta:
            self.reset_parameters()  # what replaces the meta device is not left empty
        return self

    def forward(self) -> Tensor:
        """The levels in ascending order, (levels,), never less precise than float32."""
        levels = self.table if self.table.dtype == torch.float32 else self.table.float()
        return levels.sort().values

    def extra_repr(self) -> str:
        return f"{len(self.start.levels)} levels"


class _LearnedCodebook(NamedTuple):
    module: Any


class LearnedCodebook(_LearnedCodebook, NumberFormat):
    """The levels of a module, as they are at each use: what a quantizer with learned levels works with.

    Scales are made for the table that training starts from: a level that grows does not make the scale smaller.

    Args:
        module: the levels.

    Example:
        >>> from bitwright.qcore import HalfEven
        >>> learned = LearnedCodebook(LearnedLevels((-1, 0, 0.5)))
        >>> learned.nearest(torch.tensor([0.2, 0.3, 9.0]), HalfEven()).tolist(), str(learned)
        ([0.0, 0.5, 0.5], 'learned codebook of 3 levels')
    """

    __slots__ = ()
    learned = True

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(self.module().detach().tolist())

    @property
    def low(self) -> float:
        return self.module.start.low

    @property
    def high(self) -> float:
        return self.module.start.high

    @property
    def bits(self) -> int:
        return self.module.start.bits

    def edges(self, rounding: RoundingLike) -> tuple[float, float]:
        first, second, *_ = self.levels
        *_, before, last = self.levels
        return first - (second - first) / 2, last + (last - before) / 2

    def inside(self, steps: Tensor, rounding: RoundingLike) -> Tensor:
        table = self.module().detach().to(steps.dtype)
        return (steps > table[0] - (table[1] - table[0]) / 2) & (steps < table[-1] + (table[-1] - table[-2]) / 2)

    def nearest(self, steps: Tensor, rounding: RoundingLike, relu: bool = False) -> Tensor:
        return nearest_learned(self.module(), torch.clamp_min(steps, 0) if relu else steps, rounding)

    def encode(self, steps: Tensor) -> Tensor:
        return self.snapshot().encode(steps)

    def snapshot(self) -> NumberFormat:
        """The levels as they are now, as a value; while a graph is made, which can't tell, themselves.

        Raises:
            QuantizerError: they are not finite, or all the same.
        """
        if torch.compiler.is_compiling() or is_tracing():
            return self
        known = sorted(set(self.levels))
        if len(known) < 2 or not all(map(math.isfinite, known)):
            raise QuantizerError(
                f"{path_of(self.module)}: the levels are now {', '.join(f'{each:g}' for each in self.levels)}, and a "
                "codebook needs 2 or more that differ and are finite. Train the levels with a smaller learning rate, "
                "or write learned_levels=False."
            )
        return Codebook(known)

    def __str__(self) -> str:
        return f"learned codebook of {len(self.module.start.levels)} levels"
