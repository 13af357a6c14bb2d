"""How a value between two integers is rounded.

A rounding is a callable on ``x / scale``. One of your own is a class (or a plain function) that returns whole
numbers; gradients pass straight through unless it sets ``straight_through = False`` and brings its own.
"""

from ..declare.inject import register_choices
from .fixed import Ceil, Floor, HalfEven, HalfUp, Rounding, TowardZero, round_straight_through
from .learned import LearnedRounding
from .stochastic import StochasticRounding

__all__ = [
    "ROUNDINGS",
    "Ceil",
    "Floor",
    "HalfEven",
    "HalfUp",
    "LearnedRounding",
    "Rounding",
    "StochasticRounding",
    "TowardZero",
    "round_straight_through",
]

ROUNDINGS = register_choices(
    "rounding",
    {
        "half_even": HalfEven,
        "half_up": HalfUp,
        "floor": Floor,
        "ceil": Ceil,
        "toward_zero": TowardZero,
        "stochastic": StochasticRounding,
        "learned": LearnedRounding,
    },
)
