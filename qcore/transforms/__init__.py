"""What a weight becomes before it is scaled and rounded.

A transform is a module ``(weight, inputs) -> weight``, see `bitwright.qcore.protocols.Transform`. One of your own needs
nothing else; its ``__init__`` asks for whatever attributes of the quantizer it depends on.
"""

from ..declare.inject import register_choices
from .accumulators import A2Q, A2QPlus
from .few_levels import Ternary, XnorSigns
from .tanh import Tanh
from .weight_norm import WeightNorm

__all__ = ["A2Q", "TRANSFORMS", "A2QPlus", "Tanh", "Ternary", "WeightNorm", "XnorSigns"]

TRANSFORMS = register_choices(
    "transform",
    {
        "a2q": A2Q,
        "a2q_plus": A2QPlus,
        "tanh": Tanh,
        "ternary": Ternary,
        "weight_norm": WeightNorm,
        "xnor": XnorSigns,
    },
)
