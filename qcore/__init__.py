"""What quantizers are made of: the declaration language, numerics, scales, zero points, bit widths, QuantTensor."""

from . import protocols
from .bit_width import LearnedBitWidth, bit_width_report, size_penalty
from .describe import Description, describe
from .errors import (
    BitwrightError,
    BitwrightWarning,
    QuantizerError,
    QuantTensorError,
    ReadOnlyError,
    SettingError,
    UncalibratedWarning,
)
from .fake_quant import composed_fake_quant, fake_quant, quantize_to_int
from .grid import Grid
from .inject import Quantizer, QuantizerType, Setting, diff, register_choices, resolve, settings, value
from .int_quant import BiasQuant, IntQuant, ScaleFloor
from .int_range import IntRange, int_bounds
from .locate import path_of
from .quant_tensor import QuantTensor, grid_of, values_of
from .restriction import RESTRICTIONS, FloatScale, LogScale, PowerOfTwoScale
from .rounding import ROUNDINGS, Ceil, Floor, HalfEven, HalfUp, Rounding, StochasticRounding, TowardZero
from .scaling import (
    SCALINGS,
    CalibratedScaling,
    ConstantScaling,
    LearnedScaling,
    RunningScaling,
    StatisticScaling,
)
from .statistic import (
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
    "Grid",
    "HalfEven",
    "HalfUp",
    "IntQuant",
    "IntRange",
    "LearnedBitWidth",
    "LearnedScaling",
    "LogScale",
    "MeanSigma",
    "MinMax",
    "MinSquaredError",
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
    "settings",
    "size_penalty",
    "value",
    "values_of",
]
