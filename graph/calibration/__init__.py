"""Measuring the ranges of activations."""

from .calibration import calibrate
from .histogram import Histogram
from .levels import Levels
from .report import CalibratedRange, CalibrationReport
from .thresholds import DataStatistic, Entropy, Percentile, SquaredError

__all__ = [
    "CalibratedRange",
    "CalibrationReport",
    "DataStatistic",
    "Entropy",
    "Histogram",
    "Levels",
    "Percentile",
    "SquaredError",
    "calibrate",
]
