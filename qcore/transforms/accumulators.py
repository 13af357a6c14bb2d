"""Weights that an accumulator of so many bits can't overflow with: A2Q and A2Q+."""

import torch
from torch import Tensor, nn
from torch.types import Device

from ..errors import QuantizerError, SettingError
from ..formats.int_range import IntRange, check_bit_width, check_flag
from ..formats.integers import Integers, int_bounds
from ..formats.odd_integers import BINARY
from ..granularity import Granularity, PerAxis
from ..grid import Grid
from ..locate import path_of
from ..rounding import Rounding, TowardZero
from ..scaling.magnitude import whole
from ..scaling.restriction import FloatScale
from ..scaling.stored import LearnedScaling, StoredScaling
from .norms import ChannelNorm, LearnedNorm, above_zero, beside, by_channel

__all__ = ["A2Q", "A2QPlus"]

_MAGNITUDES = ChannelNorm(1)
_SAFE = 1 - 2.0**-14  # sums of floats are a little off; the limit is below theirs by more than that


class A2Q(nn.Module):
    """Weights whose sums of products fit an accumulator of P bits, whatever the input; for each output channel.

    For inputs of the integers from ``low`` to ``high`` no sum of products, no partial sum in whatever order, and no sum
    with a bias on their scale (`Int32Bias`) lies outside P bits of two's complement, if::

        ||w / scale||_1 * max(-low, high) + |bias / scale| < 2**(P - 1)

    and rounding is toward zero. Weights are ``v * min(g, limit) / ||v||_1`` with a learned norm ``g``, so that the
    limit holds after any step of an optimizer. ``v`` is the weight, all of its magnitudes less by one threshold for
    each channel, that of the Euclidean projection of the first weights onto those within the limit: training starts
    from the nearest ones, and the threshold is 0 where the limit held at the start.

    A bias on the scale of the products takes half of the accumulator at most: where it would take more, the scale of
    its channel rises.

    The bound is that of Colbert et al., "A2Q: Accumulator-Aware Quantization with Guaranteed Overflow Avoidance"
    (2023), for the largest integer instead of the power of two above it.

    Args:
        accumulator_bit_width: bits of the accumulator, 2 to 64, its sign included.
        int_range: the integers of the weight.
        rounding: of the weight: toward zero.
        channel_axis: the dimension that counts output channels.
        granularity: which weights share a scale: all, or those of an output channel.
        zero_point: of the weight: None.
        input_bit_width: bits of the input's integers, where the layer doesn't know them.
        input_signed: whether these may be negative.
        channels: how many output channels there are.

    Raises:
        SettingError: a width that is none, another rounding, a zero point, or several scales in one sum.
        QuantizerError: in forward: the input's integers are not known, or not those of ``input_bit_width``.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8WeightPerChannelA2Q, Uint4Act
        >>> layer = qnn.QuantLinear(
        ...     64, 2, weight_quant=Int8WeightPerChannelA2Q, weight_accumulator_bit_width=12, input_quant=Uint4Act
        ... )
        >>> bool((layer.int_weight().abs().sum(1) * 15 < 2**11).all())
        True
    """

    name = "A2Q"

    def __init__(
        self,
        accumulator_bit_width: int,
        int_range: IntRange,
        rounding: Rounding,
        channel_axis: int,
        granularity: Granularity,
        zero_point: object = None,
        input_bit_width: int | None = None,
        input_signed: bool | None = None,
        channels: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        expected = "a whole number of bits from 2 to 64"
        if not 2 <= whole("accumulator_bit_width", accumulator_bit_width, expected) <= 64:
            raise SettingError("accumulator_bit_width", accumulator_bit_width, expected)
        if not isinstance(rounding, TowardZero):
            raise SettingError("rounding", rounding, "'toward_zero', which makes no sum larger")
        if zero_point is not None:
            raise SettingError("zero_point", zero_point, "None, with which no weight adds a constant to the sum")
        if not granularity.single and granularity.axis != channel_axis:
            expected = "one whose scales are common to all products of a sum: PerTensor, or PerAxis of the outputs"
            raise SettingError("granularity", granularity, expected)
        self.accumulator_bit_width = accumulator_bit_width
        self.channel_axis = channel_axis
        self.input_bounds = _bounds_of(input_bit_width, input_signed)
        self.norm = LearnedNorm(_MAGNITUDES, channels, device, dtype)
        self.threshold = _Threshold(channels, device, dtype)

    def forward(self, weight: Tensor, inputs: Grid | None) -> Tensor:
        """The weight that is measured for a scale."""
        return weight

    def limit(self, weight: Tensor, scale: Tensor, inputs: Grid | None, bias: Tensor | None) -> Tensor:
        """The weight within the limit.

        Args:
            weight: as `forward` gives it.
            scale: of the weight.
            inputs: the grid of the input.
            bias: what is added to the products on their scale, or None.
        """
        low, high = self._known(inputs)
        self._check_room(low, high)
        room = self._room(scale, inputs, bias)
        shrunk = self._shrunk(weight, room / self._heaviest(low, high))
        rows = by_channel(shrunk, self.channel_axis)
        sums = rows.abs().sum(1)
        learned = self.norm(rows).reshape(-1) / above_zero(sums)
        ratio = torch.minimum(learned, room / above_zero(self._largest(rows, sums, low, high)))
        return shrunk * beside(ratio, weight, self.channel_axis)

    def excess(self, weight: Tensor, scale: Tensor, inputs: Grid | None, bias: Tensor | None) -> Tensor:
        """By how much the logarithms of the learned norms exceed that of the limit, summed: the penalty of a loss.

        Args:
            weight: as `forward` gives it.
            scale: of the weight.
            inputs: the grid of the input.
            bias: what is added to the products on their scale, or None.
        """
        low, high = self._known(inputs)
        limit = self._room(scale, inputs, bias) / self._heaviest(low, high)
        norm = self.norm(by_channel(self._shrunk(weight, limit), self.channel_axis)).reshape(-1)
        return (torch.log2(norm) - torch.log2(above_zero(limit))).clamp_min(0.0).sum()

    # The limit

    def _room(self, scale: Tensor, inputs: Grid | None, bias: Tensor | None) -> Tensor:
        """What all products of a channel may add up to, in units of the weight times the input's integers."""
        flat = scale.reshape(-1)
        room = flat * (2.0 ** (self.accumulator_bit_width - 1) * _SAFE)
        if bias is not None and inputs is not None:
            added = bias.detach().abs().to(flat.dtype) / inputs.scale.to(flat.dtype).reshape(-1)
            room = (room - added - flat).clamp_min(0.0)  # and 1, for its rounding
        return room

    def _heaviest(self, low: float, high: float) -> float:
        """How much a sum grows at most with the sum of the weights' magnitudes."""
        return max(-low, high)

    def _largest(self, rows: Tensor, sums: Tensor, low: float, high: float) -> Tensor:
        """The largest magnitude that the products of each channel add up to, by its weights and their magnitudes."""
        return sums * max(-low, high)

    def _shrunk(self, weight: Tensor, radius: Tensor) -> Tensor:
        """The weights nearest to the first ones within the limit; later ones less by the same threshold."""
        threshold = self.threshold.for_rows(by_channel(weight.detach(), self.channel_axis), radius).reshape(-1)
        threshold = beside(threshold, weight, self.channel_axis)
        return weight - torch.maximum(torch.minimum(weight.detach(), threshold), -threshold)

    def _known(self, inputs: Grid | None) -> tuple[float, float]:
        """The smallest and the largest integer that the weight is multiplied with; 0 is always one, for padding."""
        if inputs is None:
            if self.input_bounds is None:
                raise QuantizerError(_unknown(self))
            return self.input_bounds
        found = inputs.number_format
        if not isinstance(found, Integers):
            raise QuantizerError(
                f"{path_of(self)}: {self.name} bounds sums of integers, and the levels of the input are {found}. Write "
                "input_quant=Int8Act, or another weight_quant."
            )
        low, high = int_bounds(int(found.bit_width), found.signed, found.narrow_range)
        if inputs.zero_point is not None:
            low, high = low - high, high - low  # integers minus a zero point that lies among them
        low, high = min(low, 0), max(high, 0)
        if self.input_bounds is not None and (low < self.input_bounds[0] or high > self.input_bounds[1]):
            raise QuantizerError(
                f"{path_of(self)}: the weight was declared for input integers from {self.input_bounds[0]} to "
                f"{self.input_bounds[1]}, and the input has {low} to {high}. Leave input_bit_width and input_signed "
                "out, so that the limit follows the input."
            )
        return low, high

    def _check_room(self, low: float, high: float) -> None:
        """Refuse an accumulator that holds no weight at all: every one would be 0, and stay there."""
        largest = int(max(-low, high))
        if largest >= 2 ** (self.accumulator_bit_width - 1):
            raise QuantizerError(
                f"{path_of(self)}: an accumulator of {self.accumulator_bit_width} bits holds no product with input "
                f"integers from {low} to {high}, so every weight would be 0. Write at least accumulator_bit_width="
                f"{largest.bit_length() + 1}, some bits more for sums, or quantize the input to fewer bits."
            )

    # State

    def scheme(self) -> str:
        """What a file says of it."""
        return f"{self.name} for accumulators of {self.accumulator_bit_width} bits"

    def reset_parameters(self) -> None:
        """Let norm and threshold follow the weight again, until training starts."""
        self.norm.reset_parameters()
        self.threshold.reset_parameters()

    def extra_repr(self) -> str:
        known = "" if self.input_bounds is None else ", inputs from {} to {}".format(*self.input_bounds)
        return f"{self.accumulator_bit_width} bits{known}"


class A2QPlus(A2Q):
    """`A2Q` with a limit for positive and negative weights apart, so that both may add up to as much: A2Q+.

    With positive weights ``p`` and negative ones ``n``, by the sums of their magnitudes, the limit is::

        max(p * high - n * low, n * high - p * low) + |bias / scale| < 2**(P - 1)

    After Colbert et al., "A2Q+: Improving Accumulator-Aware Weight Quantization" (2024), whose weights are centred on 0
    for each output channel, so that ``p = n``. The limit holds without that, too, and what the layer computes stays
    what it was: positive and negative weights are projected apart. ``centred=True`` takes the mean off, as the paper.

    Args are those of `A2Q`, and

        centred: whether each output channel's mean is taken off.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8WeightPerChannelA2QPlus, Uint4Act
        >>> layer = qnn.QuantLinear(
        ...     64, 2, weight_quant=Int8WeightPerChannelA2QPlus, weight_accumulator_bit_width=12, input_quant=Uint4Act
        ... )
        >>> codes = layer.int_weight()
        >>> bool((codes.clamp_min(0).sum(1) * 15 < 2**11).all() and (codes.clamp_max(0).sum(1) * 15 > -(2**11)).all())
        True
    """

    name = "A2Q+"

    def __init__(
        self,
        accumulator_bit_width: int,
        int_range: IntRange,
        rounding: Rounding,
        channel_axis: int,
        granularity: Granularity,
        zero_point: object = None,
        input_bit_width: int | None = None,
        input_signed: bool | None = None,
        centred: bool = False,
        channels: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            accumulator_bit_width,
            int_range,
            rounding,
            channel_axis,
            granularity,
            zero_point,
            input_bit_width,
            input_signed,
            channels,
            device,
            dtype,
        )
        self.centred = check_flag("centred", centred)
        if not centred:  # a threshold for each sign
            self.threshold = _Threshold(None if channels is None else 2 * channels, device, dtype)

    def forward(self, weight: Tensor, inputs: Grid | None) -> Tensor:
        """The weight less its mean, for each output channel."""
        dims = [dim for dim in range(weight.ndim) if dim != self.channel_axis % weight.ndim]
        if not (dims and self.centred):
            return weight
        return weight - torch.nan_to_num(weight.mean(dims, keepdim=True), 0.0, 0.0, 0.0)  # one NaN is not for all

    def scheme(self) -> str:
        return f"{super().scheme()}, centred" if self.centred else super().scheme()

    def _shrunk(self, weight: Tensor, radius: Tensor) -> Tensor:
        if self.centred:
            return super()._shrunk(weight, radius)
        rows = by_channel(weight.detach(), self.channel_axis)
        each = radius.expand(rows.shape[0]) / 2
        signs = torch.cat([rows.clamp_min(0.0), rows.clamp_max(0.0)])
        thresholds = self.threshold.for_rows(signs, torch.cat([each, each])).reshape(2, -1)
        up, down = (beside(threshold, weight, self.channel_axis) for threshold in thresholds)
        return weight - torch.maximum(torch.minimum(weight.detach(), up), -down)

    def _heaviest(self, low: float, high: float) -> float:
        return (high - low) / 2

    def _largest(self, rows: Tensor, sums: Tensor, low: float, high: float) -> Tensor:
        up = rows.clamp_min(0.0).sum(1)
        down = sums - up
        return torch.maximum(up * high - down * low, down * high - up * low)


class _Threshold(LearnedScaling):
    """What the Euclidean projection of the first weights onto a ball of the L1 norm takes from every magnitude."""

    def __init__(self, channels: int | None, device: Device, dtype: torch.dtype | None) -> None:
        StoredScaling.__init__(
            self, BINARY, _projection, FloatScale(), 1e-30, PerAxis(0), channels, None, 1, device, dtype, learned=False
        )
        self.max_value = None

    def for_rows(self, rows: Tensor, radius: Tensor) -> Tensor:
        """The threshold of each row, for a ball of that radius where there was no first weight yet: (rows, 1)."""
        if self._settled:
            return self(rows)
        return self(torch.cat([radius.detach().expand(rows.shape[0]).unsqueeze(1), rows], 1))

    def extra_repr(self) -> str:
        return self.progress()


def _projection(rows: Tensor) -> Tensor:
    """What the projection onto a ball of the L1 norm takes from every magnitude (Duchi et al., 2008).

    Args:
        rows: the radius, and then the values, of each row.

    Example:
        >>> _projection(torch.tensor([[3.0, 4.0, -2.0, 0.5]]))  # 2.5 and -0.5 are left
        tensor([1.5000])
    """
    radius, magnitudes = rows[:, :1], rows[:, 1:].abs().sort(1, descending=True).values
    taken = (magnitudes.cumsum(1) - radius) / torch.arange(1, magnitudes.shape[1] + 1, device=rows.device)
    return taken.amax(1).clamp_min(0.0) if magnitudes.shape[1] else radius.reshape(-1).clone().zero_()


def _bounds_of(bit_width: int | None, signed: bool | None) -> tuple[int, int] | None:
    """The range of declared inputs, with 0."""
    if bit_width is None and signed is None:
        return None
    if bit_width is None:
        raise SettingError("input_bit_width", None, "the bits of the input's integers, where input_signed is given")
    if signed is None:
        expected = "True or False, where input_bit_width is given"
        raise SettingError("input_signed", None, expected, "Write input_signed=False for integers from 0 on.")
    levels = Integers(check_bit_width("input_bit_width", bit_width), check_flag("input_signed", signed))
    return levels.bounds


def _unknown(transform: A2Q) -> str:
    return (
        f"{path_of(transform)}: {transform.name} bounds the sums of products with the input, and the grid of the input "
        "is not known. Quantize the input, input_quant=Uint8Act, run the model on one batch first, or say which "
        "integers it has: weight_input_bit_width=8, weight_input_signed=False."
    )
