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
from .formats.additive import AdditivePowersOfTwo
from .formats.bit_width import LearnedBitWidth, bit_width_report, size_penalty
from .formats.codebook import NF4, Codebook
from .formats.int_range import IntRange, int_bounds
from .formats.integers import Integers, Interval
from .formats.learned_codebook import LearnedCodebook, LearnedLevels
from .formats.minifloat import E2M1, E2M3, E3M2, E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, Minifloat, powers_of_two
from .formats.number_format import NumberFormat
from .formats.odd_integers import BINARY, OddIntegers
from .formats.unaligned import UnalignedIntegers
from .granularity import Granularity, PerAxis, PerBlock, PerGroup, PerTensor, PerToken
from .grid import Grid
from .grid_quant import GridQuant, ScaleFloor
from .int_quant import BiasQuant, IntQuant
from .kernels.dispatch import composed_fake_quant, fake_quant, quantize_to_int
from .locate import path_of
from .quant_tensor import QuantTensor, grid_of, values_of
from .rounding import (
    ROUNDINGS,
    Ceil,
    Floor,
    HalfEven,
    HalfUp,
    LearnedRounding,
    Rounding,
    StochasticRounding,
    TowardZero,
    round_straight_through,
)
from .scaling import (
    SCALINGS,
    ZERO_POINTS,
    CalibratedScaling,
    ConstantScaling,
    HalfQuadraticZeroPoint,
    LearnedScaling,
    LearnedZeroPoint,
    RangeZeroPoint,
    RunningScaling,
    StatisticScaling,
    StoredScaling,
)
from .scaling.divergence import KullbackLeibler
from .scaling.gradients import SCALE_GRADIENTS, LSQGradient, ScaleGradient
from .scaling.half_quadratic import HalfQuadraticRange
from .scaling.restriction import RESTRICTIONS, FloatScale, LogScale, MXScale, PowerOfTwoScale, TwoLevel
from .scaling.starts import LSQPlusStart, LSQStart, MinSquaredErrorInterval, StatisticsAwareBinning
from .scaling.statistics import (
    STATISTICS,
    AbsMax,
    AbsPercentile,
    MeanSigma,
    MinMax,
    MinSquaredError,
    PercentileInterval,
)
from .schedules.anneal import SHAPES, Anneal, Annealed, in_use
from .schedules.clock import Clock
from .tensor_quant import TensorQuant
from .transforms import A2Q, TRANSFORMS, A2QPlus, Ternary, WeightNorm, XnorSigns
from .truncation import TruncQuant

__all__ = [
    "A2Q",
    "BINARY",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E4M3FNUZ",
    "E5M2",
    "E5M2FNUZ",
    "NF4",
    "RESTRICTIONS",
    "ROUNDINGS",
    "SCALE_GRADIENTS",
    "SCALINGS",
    "SHAPES",
    "STATISTICS",
    "TRANSFORMS",
    "ZERO_POINTS",
    "A2QPlus",
    "AbsMax",
    "AbsPercentile",
    "AdditivePowersOfTwo",
    "Anneal",
    "Annealed",
    "BiasQuant",
    "BitwrightError",
    "BitwrightWarning",
    "CalibratedScaling",
    "Ceil",
    "Clock",
    "Codebook",
    "ConstantScaling",
    "Description",
    "FloatScale",
    "Floor",
    "Granularity",
    "Grid",
    "GridQuant",
    "HalfEven",
    "HalfQuadraticRange",
    "HalfQuadraticZeroPoint",
    "HalfUp",
    "IntQuant",
    "IntRange",
    "Integers",
    "Interval",
    "KullbackLeibler",
    "LSQGradient",
    "LSQPlusStart",
    "LSQStart",
    "LearnedBitWidth",
    "LearnedCodebook",
    "LearnedLevels",
    "LearnedRounding",
    "LearnedScaling",
    "LearnedZeroPoint",
    "LogScale",
    "MXScale",
    "MeanSigma",
    "MinMax",
    "MinSquaredError",
    "MinSquaredErrorInterval",
    "Minifloat",
    "NumberFormat",
    "OddIntegers",
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
    "ScaleGradient",
    "Setting",
    "SettingError",
    "StatisticScaling",
    "StatisticsAwareBinning",
    "StochasticRounding",
    "StoredScaling",
    "TensorQuant",
    "Ternary",
    "TowardZero",
    "TruncQuant",
    "TwoLevel",
    "UnalignedIntegers",
    "UncalibratedWarning",
    "WeightNorm",
    "XnorSigns",
    "bit_width_report",
    "composed_fake_quant",
    "describe",
    "diff",
    "fake_quant",
    "grid_of",
    "in_use",
    "int_bounds",
    "path_of",
    "powers_of_two",
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
