"""Quantization to integers: the modules that integer quantizers resolve into."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from . import protocols
from .errors import BitwrightWarning, QuantizerError, SettingError
from .formats.int_range import IntRange
from .formats.integers import Integers, Interval
from .formats.number_format import NumberFormat
from .granularity import Granularity, PerAxis, PerTensor
from .grid import Grid
from .grid_quant import FLOAT_BITS, Declared, GridQuant, ScaleFloor, exact_codes, resting
from .kernels.dispatch import to_levels
from .locate import path_of
from .protocols import checked
from .rounding import HalfEven
from .schedules.anneal import Anneal, Annealed
from .tensor_quant import TensorQuant
from .tracing import transformed

__all__ = ["FLOAT_BITS", "BiasQuant", "IntQuant", "ScaleFloor", "in_words", "resting", "several"]

_HALF_EVEN = HalfEven()


class _Integers(Declared):
    """What quantizers to integers share."""

    int_range: IntRange
    bit_width: int | nn.Module | Anneal | Annealed
    _format: Any  # Integers, or None where the bit width is learned
    _levels: Any  # an Interval, or None

    @property
    def signed(self) -> bool:
        """Whether integers may be negative."""
        return self.int_range.signed

    @property
    def narrow_range(self) -> bool:
        """Whether the range leaves out one end."""
        return self.int_range.narrow_range

    def __setattr__(self, name: str, item: Any) -> None:
        super().__setattr__(name, item)
        if name == "int_range":  # what is asked at every forward, worked out once
            fixed = None if item.learned else _format_of(item)
            levels = None if fixed is None else Interval(*fixed.bounds)
            vars(self).update(_format=fixed, _levels=levels, _plain=levels is not None and levels.high < 1 << 23)


class IntQuant(_Integers, GridQuant):
    """Quantization to integers: ``clamp(round(x / scale) + zero_point)``, and back to values.

    Args:
        int_range: the integers of the grid.
        scaling: module ``x -> scale``.
        rounding: callable on ``x / scale``.
        zero_point: callable ``(x, scale) -> zero point``, or None for 0.
        axis: the dimension that has a scale for each index, or None.
        granularity: which values share a scale, where ``axis`` can't say it.
        pass_clipped: let gradients through where values were clipped, too.
        transform: module ``(weight, inputs) -> weight``: what a weight becomes before all else, or None.
        clip_first: clip values to the ends of the range before they are rounded, see `GridQuant`.
        after: training forwards that pass values unquantized, while the range is measured; evaluation quantizes.

    Example:
        >>> from bitwright.quantizers import Int8WeightPerTensor
        >>> from bitwright.qcore import resolve
        >>> quant = resolve(Int8WeightPerTensor(bit_width=2), {"channel_axis": 0})
        >>> quant(torch.tensor([0.2, -0.6, 1.0]))
        tensor([ 0., -1.,  1.])
    """

    def __init__(
        self,
        int_range: IntRange,
        scaling: protocols.Scaling,
        rounding: protocols.Rounding = _HALF_EVEN,
        zero_point: protocols.ZeroPoint | None = None,
        axis: int | None = None,
        granularity: Granularity | None = None,
        pass_clipped: bool = False,
        transform: protocols.Transform | None = None,
        clip_first: bool = False,
        after: int = 0,
    ) -> None:
        levels = getattr(scaling, "number_format", int_range)
        if not isinstance(levels, IntRange):
            expected = "no other levels than the integers of bit_width, signed and narrow_range"
            raise SettingError("number_format", levels, expected, "Derive from a quantizer such as Fp8e4m3Act.")
        TensorQuant.__init__(self)
        self.int_range = int_range
        self._set_clock(after, [int_range, scaling, rounding, zero_point, transform])
        self.bit_width = int_range.width
        self._set_parts(scaling, rounding, zero_point, axis, granularity, pass_clipped, transform, clip_first)

    @property
    def number_format(self) -> NumberFormat:  # type: ignore[override]
        """The integers as they are now."""
        return self._number_format() if self._format is None else self._format

    @property
    def folds_relu(self) -> bool:
        """Whether a ReLU before it costs nothing: the clamp at the smallest integer does it."""
        return not self.signed and self.zero_point is None

    def _range(self) -> protocols.Levels:
        return self.int_range

    def _number_format(self) -> NumberFormat:
        return _format_of(self.int_range)

    def _levels_for(self, x: Tensor) -> NumberFormat:
        """The integers of a learned width, their ends shaped to broadcast against what `_moved` works on."""
        return self.int_range.settled(lambda widths: self._beside(widths, x))

    def _beside(self, widths: Tensor, x: Tensor) -> Tensor:
        """Bit widths, one for each scale."""
        scales = self.granularity.count(x.shape)
        if widths.numel() != scales:
            name = type(self.int_range.width).__name__
            raise QuantizerError(
                f"{name} gives {widths.numel()} bit widths, and the quantizer has one scale. Give it one for each "
                "channel, too: weight_quant=Int8WeightPerChannel, or axis=0."
                if self.granularity.single
                else f"{name} gives {widths.numel()} bit widths, and the quantizer has {scales} scales "
                f"({self.granularity}). Give one bit width, or one for each scale."
            )
        return self.granularity.beside(widths, x)


class BiasQuant(_Integers):
    """Quantization of a bias to integers on the scale of the products it is added to: input scale x weight scale.

    A bias that its integers can't hold is clipped, and the first time a warning names the channels.

    Args:
        int_range: the integers of the grid.
        rounding: callable on ``bias / scale``.

    Raises:
        QuantizerError: in forward, where the products have no common scale.

    Example:
        >>> quant = BiasQuant(IntRange(32, signed=True))
        >>> inputs, weights = Grid(torch.tensor(0.5)), Grid(torch.tensor(0.25))
        >>> quant(torch.tensor([0.3]), inputs, weights)
        tensor([0.2500])
    """

    follows_input = True
    _warned = False

    def __init__(self, int_range: IntRange, rounding: protocols.Rounding = _HALF_EVEN) -> None:
        super().__init__()
        self.int_range = int_range
        self.bit_width = int_range.width
        self.rounding = checked("rounding", rounding)

    def floor(
        self, bias: Tensor, inputs: Grid, by_channel: bool, accumulator_bits: int | None = None
    ) -> ScaleFloor | None:
        """The smallest scales of the weight with which the bias is not clipped; None where that is no matter.

        A dead channel has tiny weights and a bias all the same. From 24 bits on, weights below such a scale add less to
        the sum than the bias's own rounding to 22 bits; a narrower bias would push weights away that do count.

        Args:
            bias: the bias.
            inputs: grid of the input, with one scale or one for each entry of the bias.
            by_channel: whether the weight has a scale for each entry of the bias, or one.
            accumulator_bits: of an accumulator that holds the products and the bias, which has half of it at most.
        """
        width = self.int_range.width
        if not isinstance(width, int) or bias.numel() == 0 or (width < 24 and accumulator_bits is None):
            return None
        width = width if accumulator_bits is None else accumulator_bits
        steps = 2.0 ** (width - 2)

        def scales() -> Tensor:
            least = bias.detach().abs().to(inputs.scale.dtype) / (inputs.scale.reshape(-1) * steps)
            return least if by_channel else least.amax()

        if torch.compiler.is_compiling() or transformed() or bias.device.type != "cpu":
            return ScaleFloor(None, scales)
        return ScaleFloor(bias.detach().abs().amax().item() / (inputs.scale.amin().item() * steps), scales)

    def _quantize(self, bias: Tensor, inputs: Grid | None = None, weights: Grid | None = None) -> tuple[Tensor, Grid]:
        grid = self._grid(bias, inputs, weights)
        levels = self.int_range.settled() if self._levels is None else self._levels
        low, high = levels.bounds
        wide = bias.double() if isinstance(high, int) and high >= 1 << FLOAT_BITS else bias
        values = to_levels(wide, grid.scale.to(wide.dtype), levels, None, self.rounding).to(bias.dtype)
        if not self._warned and bias.device.type == "cpu" and not (torch.compiler.is_compiling() or transformed()):
            self._warn(bias, grid.scale, low, high)
        return values, grid

    def _grid(self, bias: Tensor, inputs: Grid | None, weights: Grid | None) -> Grid:
        for tensor, grid in (("input", inputs), ("weight", weights)):
            if grid is not None and not grid.number_format.whole:
                raise QuantizerError(
                    f"{path_of(self)}: this bias quantizer puts the bias on the grid of the products, and products "
                    f"with the levels of the {tensor}, {grid.number_format}, lie on none. Choose a bias with a scale "
                    "of its own: bias_quant=Int8BiasOwnScale."
                )
        if inputs is None or weights is None:
            lacking = "the input is a plain tensor" if inputs is None else "the weight lies on no grid of integers"
            remedy = (
                "Set return_quant_tensor=True on the layer before, or give this one input_quant=Int8Act, or choose a "
                "bias with a scale of its own: bias_quant=Int8BiasOwnScale."
                if inputs is None
                else "Set weight_quant=Int8WeightPerTensor, or bias_quant=Int8BiasOwnScale."
            )
            raise QuantizerError(
                f"{path_of(self)}: this bias quantizer needs the scales of input and weight, and {lacking}. {remedy}"
            )
        if inputs.scale.numel() != 1 or several(inputs):
            raise QuantizerError(
                f"{path_of(self)}: {in_words(inputs)}, so its products with the weight have no common one for the "
                "bias. Quantize the input per tensor (axis=None), or choose bias_quant=Int8BiasOwnScale."
            )
        scale = inputs.scale.reshape(()) * weights.scale.reshape(-1)
        scale = scale.reshape(()) if scale.numel() == 1 else scale
        granularity = PerTensor() if scale.ndim == 0 else PerAxis(0)
        return Grid(scale, None, _format_of(self.int_range), granularity)

    def _warn(self, bias: Tensor, scale: Tensor, low: int | Tensor, high: int | Tensor) -> None:
        if not isinstance(high, int) or bias.numel() == 0:
            return
        if bias.detach().abs().amax().item() <= scale.amin().item() * high:  # the short way: usually all is well
            return
        codes = bias.detach() / scale
        beyond = (codes >= high + 1) | (codes <= low - 1)
        if bool(beyond.any()):
            self._warned = True
            channels = beyond.reshape(-1).nonzero().reshape(-1).tolist()
            wider = "" if high == 2**31 - 1 else "bias_quant=Int32Bias, or "
            named = ", ".join(map(str, channels[:8])) + (f" and {len(channels) - 8} more" if len(channels) > 8 else "")
            warnings.warn(
                f"{path_of(self)}: the bias of channel{'s' * (len(channels) > 1)} {named} lies outside the range of "
                f"{self.int_range} on the scale of the products and is clipped. Write {wider}"
                "bias_quant=Int8BiasOwnScale for a scale of its own.",
                BitwrightWarning,
                stacklevel=2,
            )

    @torch.no_grad()
    def codes(self, x: Tensor, *context: Any) -> tuple[Tensor, Grid]:
        """The integers of a bias, exactly, in the smallest type that holds their range; and the grid."""
        grid = self._grid(x, *context)
        return exact_codes(x, grid, self.rounding), grid

    def scheme(self) -> str:
        """What the numbers mean, such as ``int32, scale of the products``."""
        return f"{self.int_range}, scale of the products"


def several(grid: Grid) -> bool:
    """Whether other tensors of the kind have several scales, though this may have one: a single token, or group.

    Example:
        >>> from bitwright.qcore import PerToken
        >>> several(Grid(torch.ones(1, 1), granularity=PerToken()))
        True
    """
    return grid.axis is None and not grid.granularity.single


def in_words(inputs: Grid) -> str:
    """How many scales an input has, for messages.

    Example:
        >>> in_words(Grid(torch.ones(1, 4, 1, 1), granularity=PerAxis(1)))
        'the input has 4 scales (axis 1)'
    """
    count = inputs.scale.numel()
    return f"the input has {'a scale' if count == 1 else f'{count} scales'} ({inputs.granularity})"


def _format_of(int_range: IntRange) -> Integers:
    width = int_range.widest
    return Integers(width.detach() if isinstance(width, Tensor) else width, int_range.signed, int_range.narrow_range)
