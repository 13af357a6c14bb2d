"""Quantization to integers: the modules that integer quantizers resolve into."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .attributes import assign
from .errors import QuantizerError
from .fake_quant import fake_quant
from .fused import runs_eagerly
from .grid import Grid
from .int_range import IntRange, check_flag
from .locate import path_of
from .restriction import FloatScale, LogScale
from .rounding import HalfEven, HalfUp, Rounding
from .scaling import LearnedScaling, MagnitudeScaling, StatisticScaling
from .tensor_quant import TensorQuant
from .version import version_of

__all__ = ["BiasQuant", "IntQuant"]

_HALF_EVEN = HalfEven()


class IntQuant(TensorQuant):
    """Quantization to integers: ``clamp(round(x / scale) + zero_point)``, and back to values.

    Args:
        int_range: the integers of the grid.
        scaling: module ``x -> scale``.
        rounding: callable on ``x / scale``.
        zero_point: callable ``(x, scale) -> zero point``, or None for 0.
        axis: the dimension that has a scale for each index, or None.
        pass_clipped: let gradients through where values were clipped, too.

    Example:
        >>> from bitwright.quantizers import Int8WeightPerTensor
        >>> from bitwright.qcore import resolve
        >>> quant = resolve(Int8WeightPerTensor(bit_width=2), {"channel_axis": 0})
        >>> quant(torch.tensor([0.2, -0.6, 1.0]))
        tensor([ 0., -1.,  1.])
    """

    replayable = True
    int_range: IntRange
    axis: int | None
    scaling: nn.Module
    rounding: Any
    zero_point: Any
    bit_width: Any
    clips: bool
    _settled: tuple[Any, Grid, list[Tensor]] | None = None

    def __init__(
        self,
        int_range: IntRange,
        scaling: nn.Module,
        rounding: Any = _HALF_EVEN,
        zero_point: Any = None,
        axis: int | None = None,
        pass_clipped: bool = False,
    ) -> None:
        super().__init__()
        clips = not (check_flag("pass_clipped", pass_clipped) or _covers(int_range, scaling, zero_point, rounding))
        assign(self, int_range=int_range, axis=axis, clips=clips, scaling=scaling)
        assign(self, zero_point=zero_point, bit_width=int_range.width, rounding=rounding)

    @property
    def signed(self) -> bool:
        """Whether integers may be negative."""
        return self.int_range.signed

    @property
    def narrow_range(self) -> bool:
        """Whether the range leaves out one end."""
        return self.int_range.narrow_range

    @property
    def calibrated(self) -> bool:
        """Whether the scaling has seen the data that it needs, if it needs any."""
        return getattr(self.scaling, "calibrated", True)

    @property
    def calibrating(self) -> bool:
        """Whether the scaling still measures in training."""
        return getattr(self.scaling, "calibrating", False)

    @property
    def folds_relu(self) -> bool:
        """Whether a ReLU before it costs nothing: the clamp at the smallest integer does it."""
        return not self.signed and self.zero_point is None

    def _quantize(self, x: Tensor, relu: bool = False) -> tuple[Tensor, Grid]:
        if not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            settled = self._settled_grid(x)
            if settled is not None:
                low, high = self.int_range.bounds()
                y = fake_quant(x, settled.scale, low, high, settled.zero_point, self.rounding, relu=relu)
                return y, settled
        if self.axis is not None and not -x.ndim <= self.axis < x.ndim:
            raise QuantizerError(
                f"{path_of(self)}: axis={self.axis} is not a dimension of an input of {x.ndim} dimensions. Write one "
                f"from {-x.ndim} to {x.ndim - 1}, or axis=None for one scale."
            )
        scaling = self.scaling
        ours = isinstance(scaling, MagnitudeScaling)
        if ours:
            scaling.prepare(x, relu)
        measured = relu and getattr(scaling, "measuring", True)
        seen = x.clamp_min(0) if measured else x  # statistics are those of the activation
        low, high = self.int_range.bounds()
        if ours and not measured and self._fusible(x, high):
            fused = scaling.fused(x, low, high, self.rounding, relu, self.clips)  # type: ignore[arg-type]
            if fused is not None:
                return fused[0], self._grid(fused[1], None)
        scale = scaling(seen)
        zero_point = None if self.zero_point is None else self.zero_point(seen, scale)
        values = fake_quant(x, scale, low, high, zero_point, self.rounding, relu=relu, clips=self.clips)
        return values, self._grid(scale, zero_point)

    def _settled_grid(self, x: Tensor) -> Grid | None:
        """The grid where it no longer depends on the input, worked out once for each version of the state."""
        scaling = self.scaling
        state = scaling.settled() if isinstance(scaling, MagnitudeScaling) else ()
        version = version_of(*state) if state and not self.int_range.learned else None
        if version is None:
            return None
        if self.axis is not None:
            if not -x.ndim <= self.axis < x.ndim:
                return None
            version += (x.ndim, x.shape[self.axis])
        if self._settled is None or self._settled[0] != version:
            self._settled = (version, self.grid(x), [each.detach() for each in state])
        return self._settled[1]

    def _fusible(self, x: Tensor, high: int | Tensor) -> bool:
        """Whether a scaling may do the whole work in one step: plain integers, nothing of the user's own."""
        if self.zero_point is not None or not isinstance(high, int) or high >= 1 << 23:
            return False
        return isinstance(self.rounding, Rounding) and torch.is_grad_enabled() and runs_eagerly(x)

    def _grid(self, scale: Tensor, zero_point: Tensor | None) -> Grid:
        width = self.int_range.bit_width
        return Grid(
            scale.detach() if scale.requires_grad else scale,
            None if zero_point is None else zero_point.detach(),
            width.detach() if isinstance(width, Tensor) else width,
            self.signed,
            self.narrow_range,
            self.axis,
            self.source,
        )

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        """The grid that ``x`` would be moved to in evaluation; nothing is collected or learned from it."""
        follows = getattr(self.scaling, "follows", False)  # then the first forward sets it, and this is none
        quant = copy.deepcopy(self) if follows else self
        modes = [(module, module.training) for module in quant.scaling.modules()]
        quant.scaling.eval()
        try:
            scale = quant.scaling(x)
            return self._grid(scale, None if quant.zero_point is None else quant.zero_point(x, scale))
        finally:
            for module, mode in modes:
                module.training = mode

    def scale(self) -> Tensor:
        """The scale as it stands, where it depends on no input: constant, learned or collected. () or (channels,).

        Raises:
            QuantizerError: the scale follows the input, or has seen none yet.
        """
        settled = self.scaling.settled() if isinstance(self.scaling, MagnitudeScaling) else ()
        if not settled:
            raise QuantizerError(
                f"{self.scheme()}: the scale follows the input, or has seen none yet. Ask for the grid of an input, "
                "quant.grid(x).scale, or run some batches in training mode first."
            )
        shape = [1] * (1 if self.axis is None else max(self.axis + 1, -self.axis))
        if self.axis is not None:
            shape[self.axis] = settled[0].numel()
        scale = self.grid(settled[0].new_empty(shape)).scale
        return scale if self.axis is None else scale.reshape(-1)

    def initialize(self, x: Tensor) -> None:
        """Set a learned scale from a weight."""
        if getattr(self.scaling, "follows", False):
            self.scaling.observe(x.detach())  # type: ignore[operator]

    def rederive(self, x: Tensor) -> None:
        """Set a learned scale from a weight, also if it was trained since."""
        if isinstance(self.scaling, LearnedScaling):
            self.scaling.observe(x.detach())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_settled": None}

    def scheme(self) -> str:
        """Such as ``int4 narrow, axis 0, scale learned``."""
        where = "per tensor" if self.axis is None else f"axis {self.axis}"
        zero = "" if self.zero_point is None else f", zero point {type(self.zero_point).__name__}"
        restriction = getattr(self.scaling, "restriction", None)
        allowed = "" if restriction is None or type(restriction) is FloatScale else f" {restriction!r}"
        return f"{self.int_range}, {where}, scale {type(self.scaling).__name__}{allowed}{zero}, {_name(self.rounding)}"

    def extra_repr(self) -> str:
        return self.scheme()


class BiasQuant(TensorQuant):
    """Quantization of a bias to integers on the scale of the products it is added to: input scale x weight scale.

    Args:
        int_range: the integers of the grid.
        rounding: callable on ``bias / scale``.

    Raises:
        QuantizerError: in forward, where the input has no single scale.

    Example:
        >>> quant = BiasQuant(IntRange(32, signed=True))
        >>> inputs, weights = Grid(torch.tensor(0.5)), Grid(torch.tensor(0.25))
        >>> quant(torch.tensor([0.3]), inputs, weights)
        tensor([0.2500])
    """

    replayable = True
    follows_input = True
    int_range: IntRange
    bit_width: Any
    rounding: Any

    def __init__(self, int_range: IntRange, rounding: Any = _HALF_EVEN) -> None:
        super().__init__()
        assign(self, int_range=int_range, bit_width=int_range.width, rounding=rounding)

    def _quantize(self, bias: Tensor, inputs: Grid | None = None, weights: Grid | None = None) -> tuple[Tensor, Grid]:
        if inputs is None or weights is None:
            lacking = "the input is a plain tensor" if inputs is None else "the weight is not quantized"
            remedy = (
                "Set return_quant_tensor=True on the layer before, or give this one input_quant=Int8Act, or choose a "
                "bias with a scale of its own: bias_quant=Int8BiasOwnScale."
                if inputs is None
                else "Set weight_quant=Int8WeightPerTensor, or bias_quant=Int8BiasOwnScale."
            )
            raise QuantizerError(
                f"{path_of(self)}: this bias quantizer needs the scales of input and weight, and {lacking}. {remedy}"
            )
        if inputs.scale.numel() != 1:
            raise QuantizerError(
                f"{path_of(self)}: the input has {inputs.scale.numel()} scales (axis {inputs.axis}), so its products "
                "with the weight have no common one for the bias. Quantize the input per tensor (axis=None), or "
                "choose bias_quant=Int8BiasOwnScale."
            )
        scale = inputs.scale.reshape(()) * weights.scale.reshape(-1)
        scale = scale.reshape(()) if scale.numel() == 1 else scale
        low, high = self.int_range.bounds()
        values = fake_quant(bias, scale, low, high, None, self.rounding)
        axis = None if scale.ndim == 0 else 0
        width = self.int_range.bit_width
        return values, Grid(scale, None, width, self.int_range.signed, self.int_range.narrow_range, axis, self.source)

    def scheme(self) -> str:
        """Such as ``int32 bias``."""
        return f"{self.int_range} bias, scale of the products, {_name(self.rounding)}"

    def extra_repr(self) -> str:
        return self.scheme()


def _covers(int_range: IntRange, scaling: nn.Module, zero_point: Any, rounding: Any) -> bool:
    """Can nothing be clipped? Then the gradient needs no mask."""
    symmetric = int_range.signed and int_range.narrow_range and zero_point is None and not int_range.learned
    nearest = type(rounding) in (HalfEven, HalfUp)  # the others may round the largest magnitude past its integer
    if not symmetric or not nearest or type(scaling) is not StatisticScaling:
        return False
    return getattr(scaling.statistic, "covers", False) and type(scaling.restriction) in (FloatScale, LogScale)


def _name(rounding: Any) -> str:
    return getattr(rounding, "name", None) or getattr(rounding, "__name__", type(rounding).__name__)
