"""Fragments that the shipped quantizers are built from."""

import re
from typing import Any, TypeVar

from ..qcore import BiasQuant, GridQuant, IntQuant, IntRange, Minifloat, Quantizer, int_bounds, settings, value
from ..qcore.declare.inject import QuantizerType
from ..qcore.granularity import PerGroup as Groups
from ..qcore.granularity import PerToken as Tokens
from ..qcore.granularity import granularity_of

__all__ = [
    "BiasBase",
    "Dynamic",
    "FloatBase",
    "FormatAct",
    "FormatBase",
    "FormatWeight",
    "IntBase",
    "PerGroup",
    "PerOutputChannel",
    "PerToken",
    "PowerOfTwo",
    "Shifted",
    "of_format",
    "of_width",
]


Kind = TypeVar("Kind", bound=QuantizerType)


def of_width(quantizer: Kind, bit_width: int) -> Kind:
    """The quantizer like another, with another bit width, and named after it: ``Int4Act`` for ``Int8Act``.

    Example:
        >>> from bitwright.quantizers import Int8Act
        >>> Int12Act = of_width(Int8Act, 12)
        >>> Int12Act, Int12Act.bit_width
        (Int12Act, 12)
    """
    declared = settings(quantizer)
    low, high = int_bounds(bit_width, declared["signed"].declared, declared["narrow_range"].declared)
    name = quantizer.__name__.replace(str(declared["bit_width"].declared), str(bit_width), 1)
    text = f"`{quantizer.__name__}` with {bit_width} bits: integers from {low} to {high}."
    namespace = {"bit_width": bit_width, "__doc__": text, "__module__": quantizer.__module__, "__qualname__": name}
    return type(quantizer)(name, (quantizer,), namespace)


def of_format(quantizer: Kind, number_format: Minifloat) -> Kind:
    """The quantizer to small floats like another, to those of another format, and named after it.

    Args:
        quantizer: one whose name has a format of floats in it, such as ``Fp8e4m3Act`` or ``MXFloat8e4m3Weight``.
        number_format: the other format.

    Example:
        >>> from bitwright.qcore import Minifloat
        >>> from bitwright.quantizers import MXFloat8e4m3Weight
        >>> MXFloat5e2m2Weight = of_format(MXFloat8e4m3Weight, Minifloat(2, 2))
        >>> MXFloat5e2m2Weight, MXFloat5e2m2Weight.mantissa_bits
        (MXFloat5e2m2Weight, 2)
    """
    declared = settings(quantizer)
    given = number_format._asdict()
    if number_format == Minifloat(**{**given, "exponent_bias": None}):
        given["exponent_bias"] = None  # it follows from the bits
    fields = {name: item for name, item in given.items() if item != declared[name].declared}
    unsigned_zero = "" if number_format.negative_zero else "fnuz"
    bits = f"{number_format.exponent_bits}m{number_format.mantissa_bits}"
    name = _FORMAT.sub(f"{number_format.bits}e{bits}{unsigned_zero}", quantizer.__name__, count=1)
    high = f"{number_format.high:g}"
    text = f"`{quantizer.__name__}` with floats of {number_format.bits} bits, {number_format}: up to {high}."
    namespace = {**fields, "__doc__": text, "__module__": quantizer.__module__, "__qualname__": name}
    return type(quantizer)(name, (quantizer,), namespace)


_FORMAT = re.compile(r"\d+e\d+m\d+(fnuz)?")


class IntBase(Quantizer):
    """Fragment: quantization to integers; only `scaling` is missing.

    Example:
        >>> IntBase.rounding, IntBase.restriction
        ('half_even', 'float')
    """

    quantizes = None
    tensor_quant = IntQuant
    int_range = IntRange
    bit_width = 8
    signed = True
    narrow_range = False
    rounding = "half_even"
    restriction = "float"
    min_scale = 1e-10
    axis = None

    @value
    def number_format(int_range):  # noqa: ANN201, N805 - int_range is an attribute, not an instance
        """The levels, by the name that parts of every quantizer know them by."""
        return int_range

    @value
    def granularity(axis):  # noqa: ANN201, N805 - axis is an attribute, not an instance
        """Which values share a scale."""
        return granularity_of(axis)


class FormatBase(Quantizer):
    """Fragment: quantization to the levels of a number format; `number_format` and `scaling` are missing.

    Example:
        >>> from bitwright.qcore import E2M3, resolve
        >>> class Fp6e2m3Weight(FormatBase):
        ...     quantizes = "weight"
        ...     number_format = E2M3
        ...     scaling = "statistic"
        >>> resolve(Fp6e2m3Weight, {"channel_axis": 0})
        GridQuant(
          e2m3fn, per tensor, float scale, half_even
          (scaling): StatisticScaling(AbsMax(), per tensor)
        )
    """

    quantizes = None
    tensor_quant = GridQuant
    rounding = "half_even"
    restriction = "float"
    min_scale = 1e-10
    axis = None

    @value
    def granularity(axis):  # noqa: ANN201, N805 - axis is an attribute, not an instance
        """Which values share a scale."""
        return granularity_of(axis)


class FloatBase(FormatBase):
    """Fragment: quantization to floats of few bits; `exponent_bits`, `mantissa_bits` and `scaling` are missing.

    The other settings are those of `Minifloat`: `exponent_bias`, `infinities`, `nan`, `negative_zero`, `saturating`.

    Example:
        >>> import bitwright.nn as qnn
        >>> class Fp6Weight(FloatBase):
        ...     quantizes = "weight"
        ...     scaling = "statistic"
        ...     exponent_bits = 3
        ...     mantissa_bits = 2
        >>> qnn.QuantLinear(4, 2, weight_quant=Fp6Weight, weight_mantissa_bits=1).weight_quant.number_format
        Minifloat(3, 1)
    """

    exponent_bias = None
    infinities = False
    nan = False
    negative_zero = True
    saturating = True

    @value
    def number_format(  # noqa: ANN201
        exponent_bits: Any,  # noqa: N805 - an attribute, not an instance
        mantissa_bits: Any,
        exponent_bias: Any,
        infinities: Any,
        nan: Any,
        negative_zero: Any,
        saturating: Any,
    ):
        """The levels."""
        return Minifloat(exponent_bits, mantissa_bits, exponent_bias, infinities, nan, negative_zero, saturating)


class Dynamic(Quantizer):
    """Fragment: an activation whose scale follows the tensor at hand, at each forward: nothing is calibrated or stored.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.quantizers import IntBase
        >>> class Int4Dynamic(Dynamic, IntBase):
        ...     bit_width = 4
        ...     narrow_range = True
        >>> qnn.QuantIdentity(act_quant=Int4Dynamic)(torch.tensor([0.7, -0.24]))
        tensor([ 0.7000, -0.2000])
    """

    quantizes = "activation"
    scaling = "statistic"
    statistic = "abs_max"
    detach_scale = False


class FormatWeight(FormatBase):
    """Fragment: weights on the levels of a number format, whose scale follows the largest magnitude at each forward.

    Example:
        >>> FormatWeight.scaling, FormatWeight.statistic
        ('statistic', 'abs_max')
    """

    quantizes = "weight"
    scaling = "statistic"
    statistic = "abs_max"
    detach_scale = False


class FormatAct(FormatBase):
    """Fragment: activations on the levels of a number format; the scale is calibrated over 300 batches, then learned.

    Example:
        >>> FormatAct.scaling, FormatAct.calibration_steps
        ('calibrated', 300)
    """

    quantizes = "activation"
    scaling = "calibrated"
    statistic = "percentile"
    percentile = 99.999
    calibration_steps = 300
    momentum = 0.1


class PerOutputChannel(Quantizer):
    """Fragment: one scale per output channel of the layer.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8WeightPerTensor
        >>> class PerChannel(PerOutputChannel, Int8WeightPerTensor):
        ...     pass
        >>> qnn.QuantConv2d(3, 6, 5, weight_quant=PerChannel).quant_weight().scale.shape
        torch.Size([6, 1, 1, 1])
    """

    @value
    def axis(channel_axis):  # noqa: ANN201, N805 - channel_axis is an attribute, not an instance
        """The weight's dimension of output channels."""
        return channel_axis


class PerGroup(Quantizer):
    """Fragment: one scale for each group of neighbours along the input channels; of an activation, its last dimension.

    ``group_size=32`` neighbours share one, the last group may be shorter, and -1 stands for all. ``group_axis`` selects
    another dimension.

    Example:
        >>> import bitwright.nn as qnn
        >>> from bitwright.quantizers import Int4WeightPerTensor
        >>> class Int4Groups(PerGroup, Int4WeightPerTensor):
        ...     group_size = 16
        >>> qnn.QuantLinear(40, 2, weight_quant=Int4Groups).quant_weight().scale.shape
        torch.Size([2, 3])
    """

    group_size = 32
    group_axis = None

    @value
    def granularity(group_size: Any, group_axis, axis=None, channel_axis=None, shape=None):  # noqa: ANN001, ANN201, N805
        """Which values share a scale."""
        flat = shape is not None and len(shape) == 1  # a norm's weight, which has no input channels
        usual = -1 if channel_axis is None or flat else 1 - channel_axis
        return granularity_of(axis, Groups(group_size, usual if group_axis is None else group_axis))


class PerToken(Quantizer):
    """Fragment: one scale for each vector along the last dimension of an activation.

    Example:
        >>> import torch, bitwright.nn as qnn
        >>> from bitwright.quantizers import Int8DynamicAct
        >>> class Rows(PerToken, Int8DynamicAct):
        ...     pass
        >>> act = qnn.QuantIdentity(act_quant=Rows, return_quant_tensor=True)
        >>> act(torch.randn(2, 7, 64)).scale.shape
        torch.Size([2, 7, 1])
    """

    granularity = Tokens()


class PowerOfTwo(Quantizer):
    """Fragment: scales rounded up to powers of two."""

    restriction = "power_of_two"
    power_of_two_rounding = "ceil"


class Shifted(Quantizer):
    """Fragment: unsigned integers with a zero point, for ranges that are not centred on 0."""

    signed = False
    narrow_range = False
    zero_point = "range"


class BiasBase(Quantizer):
    """Fragment: bias quantization at the scale of the products, input scale x weight scale.

    Example:
        >>> BiasBase.bit_width
        32
    """

    quantizes = "bias"
    tensor_quant = BiasQuant
    int_range = IntRange
    bit_width = 32
    signed = True
    narrow_range = False
    rounding = "half_even"
