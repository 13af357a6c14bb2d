"""What quantizers are made of: the declaration language, numerics, scales, zero points, bit widths, QuantTensor."""

from . import protocols
from .declare.description import Description, describe
from .declare.inject import Quantizer, QuantizerType, Setting, diff, register_choices, resolve, settings, value
from .errors import (
    BitwrightError,
    BitwrightWarning,
    QuantizerError,
    QuantTensorError,
    ReadOnlyError,
    SettingError,
    UncalibratedWarning,
)
from .formats.bit_width import LearnedBitWidth, bit_width_report, size_penalty
from .formats.int_range import IntRange, int_bounds
from .formats.number_format import Integers, NumberFormat
from .granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken
from .grid import Grid
from .int_quant import BiasQuant, IntQuant, ScaleFloor
from .kernels.dispatch import composed_fake_quant, fake_quant, quantize_to_int
from .locate import path_of
from .quant_tensor import QuantTensor, grid_of, values_of
from .rounding import (
    ROUNDINGS,
    Ceil,
    Floor,
    HalfEven,
    HalfUp,
    Rounding,
    StochasticRounding,
    TowardZero,
    round_straight_through,
)
from .scaling import (
    SCALINGS,
    CalibratedScaling,
    ConstantScaling,
    LearnedScaling,
    RunningScaling,
    StatisticScaling,
    StoredScaling,
)
from .scaling.restriction import RESTRICTIONS, FloatScale, LogScale, PowerOfTwoScale
from .scaling.statistics import (
    STATISTICS,
    AbsMax,
    AbsPercentile,
    MeanSigma,
    MinMax,
    MinSquaredError,
    PercentileInterval,
)
from .tensor_quant import TensorQuant
from .zero_point import ZERO_POINTS, RangeZeroPoint

__all__ = [
    "RESTRICTIONS",
    "ROUNDINGS",
    "SCALINGS",
    "STATISTICS",
    "ZERO_POINTS",
    "AbsMax",
    "AbsPercentile",
    "BiasQuant",
    "BitwrightError",
    "BitwrightWarning",
    "CalibratedScaling",
    "Ceil",
    "ConstantScaling",
    "Description",
    "FloatScale",
    "Floor",
    "Granularity",
    "Grid",
    "HalfEven",
    "HalfUp",
    "IntQuant",
    "IntRange",
    "Integers",
    "LearnedBitWidth",
    "LearnedScaling",
    "LogScale",
    "MeanSigma",
    "MinMax",
    "MinSquaredError",
    "NumberFormat",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "PercentileInterval",
    "PowerOfTwoScale",
    "QuantTensor",
    "QuantTensorError",
    "Quantizer",
    "QuantizerError",
    "QuantizerType",
    "RangeZeroPoint",
    "ReadOnlyError",
    "Rounding",
    "RunningScaling",
    "ScaleFloor",
    "Setting",
    "SettingError",
    "StatisticScaling",
    "StochasticRounding",
    "StoredScaling",
    "TensorQuant",
    "TowardZero",
    "UncalibratedWarning",
    "bit_width_report",
    "composed_fake_quant",
    "describe",
    "diff",
    "fake_quant",
    "grid_of",
    "int_bounds",
    "path_of",
    "protocols",
    "quantize_to_int",
    "register_choices",
    "resolve",
    "round_straight_through",
    "settings",
    "size_penalty",
    "value",
    "values_of",
]
