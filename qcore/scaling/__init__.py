"""Where a scale comes from.

A scaling is a module ``x -> scale``: the scale is positive, and 0-d or broadcastable to ``x``. One of your own needs
nothing else; ask in its ``__init__`` for whatever attributes of the quantizer it depends on.
"""

from ..declare.inject import register_choices
from .calibrated import CalibratedScaling, RunningScaling
from .constant import ConstantScaling, FixedScaling, FixedZeroPoint
from .dynamic import StatisticScaling
from .half_quadratic import HalfQuadraticZeroPoint
from .learned_zero_point import LearnedZeroPoint
from .magnitude import MagnitudeScaling
from .stored import LearnedScaling, StoredScaling
from .zero_point import RangeZeroPoint

__all__ = [
    "SCALINGS",
    "ZERO_POINTS",
    "CalibratedScaling",
    "ConstantScaling",
    "FixedScaling",
    "FixedZeroPoint",
    "HalfQuadraticZeroPoint",
    "LearnedScaling",
    "LearnedZeroPoint",
    "MagnitudeScaling",
    "RangeZeroPoint",
    "RunningScaling",
    "StatisticScaling",
    "StoredScaling",
]

SCALINGS = register_choices(
    "scaling",
    {
        "constant": ConstantScaling,
        "statistic": StatisticScaling,
        "learned": LearnedScaling,
        "calibrated": CalibratedScaling,
        "running": RunningScaling,
    },
)

ZERO_POINTS = register_choices(
    "zero_point", {"range": RangeZeroPoint, "learned": LearnedZeroPoint, "hqo": HalfQuadraticZeroPoint}
)
